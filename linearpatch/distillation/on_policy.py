"""Sequences that the student continues itself, for the dense model to score: on-policy distillation.

A student that only reads text of others never sees what its own errors lead to (Agarwal et al., 2024). What it writes
is renewed now and then, many sequences at a time, since a token costs about as much for one as for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor

import torch
from torch import Tensor

from linearpatch.distillation.patch_forms import at_rest
from linearpatch.models.decoder import decoder_of
from linearpatch.models.runner import Runner
from linearpatch.models.sampling import Sampling, continuations, draws_of
from linearpatch.storage.cache import Entry

TOGETHER = 16  # sequences that are written at a time
PROMPT = 0.5  # of each sequence; the rest is written


class OnPolicy:
    """What the student writes for the next steps.

    Args:
        share: Of the sequences of each step.
        student: Writes them, as it is at that time.
        ids: The sequences of the training, `[sequences, tokens]`, whose beginnings it continues.
        sequences_per_step: How many each step has.
        rows_of: The sequences of a step.
        seed: Of what is sampled.

    Attributes:
        written: By step and row, the whole sequence, `[tokens]`.
    """

    def __init__(
        self,
        share: float,
        student: Runner,
        ids: Tensor,
        sequences_per_step: int,
        rows_of: Callable[[int], Sequence[int]],
        seed: int,
    ) -> None:
        self.share, self.student, self.ids, self.seed = share, student, ids, seed
        self._each = share * sequences_per_step
        self._rows_of = rows_of
        self._until = 0  # the first step that nothing was written for
        self.written: dict[tuple[int, int], Tensor] = {}

    @property
    def period(self) -> int:
        """How many steps are written for at a time."""
        return max(1, ceil(TOGETHER / self._each)) if self.share else 1

    def rows(self, step: int) -> Sequence[int]:
        """Which sequences of a step the student continues; over several steps they are the share asked for."""
        count = floor((step + 1) * self._each + 1e-9) - floor(step * self._each + 1e-9)
        return self._rows_of(step)[:count]

    def prepare(self, step: int) -> None:
        """Write for a step and those that follow it, where that isn't done yet."""
        if not self.share or step < self._until:
            return
        self._until = step + self.period
        asked = [(later, row) for later in range(step, self._until) for row in self.rows(later)]
        self.written = dict(zip(asked, self._continued(asked), strict=True))

    def forget(self) -> None:
        """Drop what was written; the next step writes others."""
        self._until, self.written = 0, {}

    def sequences(self, step: int, rows: Sequence[int]) -> Tensor | None:
        """Some sequences of a step with what the student wrote, `[rows, tokens]`; None where it wrote none of them."""
        if not any((step, row) in self.written for row in rows):
            return None
        return torch.stack([self.written.get((step, row), self.ids[row]) for row in rows])

    def state(self) -> Entry:
        """What is written and not trained on yet."""
        places = [list(place) for place in self.written]
        tensors = {"written": torch.stack(list(self.written.values()))} if places else {}
        return Entry(tensors, {"places": places, "until": self._until})

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
        """Resume from that."""
        places = facts["places"]
        assert isinstance(places, list)
        assert isinstance(facts["until"], int)
        self._until = facts["until"]
        texts = tensors["written"] if places else ()
        self.written = {(step, row): text for (step, row), text in zip(places, texts, strict=True)}

    def _continued(self, places: Sequence[tuple[int, int]]) -> list[Tensor]:
        length = self.ids.shape[1]
        kept = max(1, int(PROMPT * length))
        view = decoder_of(at_rest(self.student.edit).view(self.student.decoder))
        texts: list[Tensor] = []
        for start in range(0, len(places), TOGETHER):
            part = places[start : start + TOGETHER]
            prompts = [self.ids[row, :kept].tolist() for _, row in part]
            names = [f"on-policy {self.seed} {step} {row}" for step, row in part]
            draws = torch.stack([draws_of(name, length - kept) for name in names])
            written = continuations(view, prompts, draws, Sampling(), num_tokens=length - kept)
            texts += [torch.tensor([*prompt, *new]) for prompt, new in zip(prompts, written, strict=True)]
        return texts
