"""Losses of many edits that differ from one of them only past some layer, at about half the price.

To ask which layers hurt least, each candidate is tried in turn. All that comes before its first change is the
same as in the model that the search stands at, so the stream before each step of that model is kept, and
only what follows the change runs: half of the layers on average (the greedy search of SLEB, algorithm 1,
and the search for windows that are patched). A candidate whose summed loss passes that of enough others
can't win and stops early; negative log-likelihoods are never negative, so that is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor

from linearpatch.models.decoder import Decoder, LayerCall
from linearpatch.models.edit import DENSE, Edit
from linearpatch.models.loss import stream_divergence, stream_nll
from linearpatch.models.passes import record
from linearpatch.models.runner import Step, steps_of
from linearpatch.models.weight_changes import changed_decoder
from linearpatch.runtime.memory import has_room

NLL, DIVERGENCE = "nll", "divergence"
OBJECTIVES = (NLL, DIVERGENCE)
LEFT_FREE = 0.2  # of a device's memory, for the batch that runs and for the fits of a search


@dataclass(frozen=True)
class CandidateLoss:
    """Mean loss of a candidate over tokens; a lower bound of it where the evaluation stopped early."""

    loss: float
    is_bound: bool = False


@dataclass(frozen=True)
class _Plan:
    """How an edited model runs: its steps, and the decoder that they run on."""

    steps: Sequence[Step]
    decoder: Decoder


class CandidateSearch:
    """A model made of the dense one, and the stream that reaches each of its steps.

    Memory: one stream for each layer for every token, in the model's dtype.

    Args:
        decoder: The dense model.
        batches: Token ids, each `[batch, tokens]`.
        offload: Keep the streams in CPU memory, pinned where there is a GPU to carry them to. None: those that would
            leave less than `LEFT_FREE` of the device's memory free.
        objective: What the loss of a token is: `nll`, that of predicting the next one, or `divergence`, the
            Kullback-Leibler divergence of the prediction from the dense model's.

    Attributes:
        layer_forwards: Layers run so far, each counted once per batch.
    """

    def __init__(
        self, decoder: Decoder, batches: Sequence[Tensor], *, offload: bool | None = None, objective: str = NLL
    ) -> None:
        self.decoder = decoder
        self.batches = batches
        self._offload = offload
        self.layer_forwards = 0
        self._steps = self._plan(DENSE).steps
        self._streams: list[list[Tensor]] = []  # for each batch, what reaches each step
        self._calls: list[dict[int, LayerCall]] = []
        for batch in batches:
            recording = record(decoder, batch)
            self._streams.append([self._kept(recording.streams[step.layer]) for step in self._steps])
            self._calls.append(recording.calls)
            self.layer_forwards += decoder.num_layers
        # What enters the dense model's final norm: predictions are compared with those that it gives.
        self._reference = [streams[-1] for streams in self._streams] if objective == DIVERGENCE else None

    @torch.no_grad()
    def move(self, edit: Edit) -> None:
        """Keep the streams of another edited model; those past the first difference are computed again."""
        plan = self._plan(edit)
        if plan.steps == self._steps:
            return
        same = self._shared_with(plan)
        for streams, calls in zip(self._streams, self._calls, strict=True):
            hidden = self._restored(streams[same])
            del streams[same + 1 :]
            for step in plan.steps[same:-1]:
                hidden = self._run(plan, hidden, calls, step)
                streams.append(self._kept(hidden))
        self._steps = plan.steps

    @property
    def is_dense(self) -> bool:
        """Whether it stands at the dense model."""
        return self._steps == self._plan(DENSE).steps

    def streams(self, index: int) -> list[Tensor]:
        """What reaches each step of the model that the search stands at, on one of the batches, where layers run."""
        return [self._restored(stream) for stream in self._streams[index]]

    @torch.no_grad()
    def losses(
        self,
        edits: Sequence[Edit],
        *,
        survivors: int | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> list[CandidateLoss]:
        """Mean loss of each edited model; of those that no more tokens can bring among the best, a lower bound.

        Args:
            edits: Candidates. Those that share an operator share the `PlacedOperator`: that is how a search knows
                how far they are the same.
            survivors: So many of the best have exact losses; the others may be given up. Which are the best
                and their losses are the same either way. None measures all to the end.
            on_step: Called after each candidate.
        """
        plans = [self._plan(edit) for edit in edits]
        starts = [self._shared_with(plan) for plan in plans]
        batch_losses: list[dict[int, float]] = [{} for _ in edits]  # for each model, by batch that it has seen
        complete: list[float] = []
        order = list(range(len(self.batches)))

        def total(index: int) -> float:
            return sum(batch_losses[index][batch] for batch in sorted(batch_losses[index]))

        def advance(index: int, batches: Sequence[int]) -> None:
            for batch in batches:
                if batch not in batch_losses[index] and not self._is_ruled_out(total(index), complete, survivors):
                    batch_losses[index][batch] = self._loss(plans[index], starts[index], batch)

        if survivors is not None:  # the likeliest winners first: low losses early let the others stop early
            for index in range(len(edits)):
                advance(index, order[:1])
        for index in sorted(range(len(edits)), key=lambda index: (total(index), index)):
            advance(index, order)
            if len(batch_losses[index]) == len(order):
                complete.append(total(index))
                # Hard text first: sums grow past the best sooner.
                order.sort(key=lambda batch: -batch_losses[index][batch])
            on_step()
        # An early stop divides by all tokens, too: the tokens not seen cost at least nothing.
        tokens = self.tokens_of(order)
        return [
            CandidateLoss(total(index) / tokens, is_bound=len(batch_losses[index]) < len(order))
            for index in range(len(edits))
        ]

    @torch.no_grad()
    def batch_loss(self, edit: Edit, index: int) -> float:
        """Summed loss of an edited model on one of the batches."""
        plan = self._plan(edit)
        return self._loss(plan, self._shared_with(plan), index)

    @torch.no_grad()
    def token_losses(self, edit: Edit, index: int) -> Tensor:
        """Loss of an edited model at each token of one of the batches, `[batch, tokens - 1]` in fp32."""
        plan = self._plan(edit)
        return self._token_losses(plan, self._shared_with(plan), index)

    @torch.no_grad()
    def last_stream(self, edit: Edit, index: int) -> Tensor:
        """What the final norm of an edited model reads on one of the batches, `[batch, tokens, hidden_size]`."""
        plan = self._plan(edit)
        return self._last_stream(plan, self._shared_with(plan), index)

    def tokens_of(self, batches: Iterable[int]) -> int:
        """Tokens of some batches on which losses are measured."""
        return sum(self.batches[index][:, 1:].numel() for index in batches)

    @staticmethod
    def _is_ruled_out(total: float, complete: Sequence[float], survivors: int | None) -> bool:
        return survivors is not None and len(complete) >= survivors and total > sorted(complete)[survivors - 1]

    def _loss(self, plan: _Plan, start: int, index: int) -> float:
        """Summed loss of one batch."""
        value = self._token_losses(plan, start, index).sum(dtype=torch.float64).item()
        return value if isfinite(value) else inf  # a broken model is the worst candidate, not an error

    def _token_losses(self, plan: _Plan, start: int, index: int) -> Tensor:
        """Losses of one batch, from the first step that isn't that of the model the search stands at."""
        stream = self._last_stream(plan, start, index)
        if self._reference is not None:
            expected = self._restored(self._reference[index])
            return stream_divergence(self.decoder, expected, plan.decoder, stream)
        return stream_nll(plan.decoder, stream, self.batches[index])

    def _last_stream(self, plan: _Plan, start: int, index: int) -> Tensor:
        """What the final norm reads on one batch."""
        hidden, calls = self._restored(self._streams[index][start]), self._calls[index]
        for step in plan.steps[start:-1]:
            hidden = self._run(plan, hidden, calls, step)
        return plan.steps[-1].read(hidden)

    def _kept(self, hidden: Tensor) -> Tensor:
        """A stream where it is kept."""
        if hidden.device.type == "cpu" or not self._is_offloaded(hidden):
            return hidden
        host = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=hidden.device.type == "cuda")
        return host.copy_(hidden)

    def _restored(self, hidden: Tensor) -> Tensor:
        """A stream where layers run; with layers on several devices each takes it to its own."""
        if hidden.device.type != "cpu":
            return hidden
        return hidden.to(self.decoder.input_device, non_blocking=True)

    def _is_offloaded(self, hidden: Tensor) -> bool:
        """Whether a stream leaves the device on which it arose."""
        if self._offload is not None:
            return self._offload
        return not has_room(hidden.device, hidden.nbytes, leaving=LEFT_FREE)

    def _run(self, plan: _Plan, hidden: Tensor, calls: dict[int, LayerCall], step: Step) -> Tensor:
        self.layer_forwards += 1
        return step.run(plan.decoder, step.read(hidden), calls[step.layer])

    def _shared_with(self, plan: _Plan) -> int:
        """How many steps a model begins with that are those of the model the search stands at."""
        pairs = zip(plan.steps[:-1], self._steps[:-1], strict=False)
        differs = (index for index, (step, kept_step) in enumerate(pairs) if step != kept_step)
        return next(differs, min(len(plan.steps), len(self._steps)) - 1)

    def _plan(self, edit: Edit) -> _Plan:
        return _Plan(steps_of(edit, self.decoder.num_layers), changed_decoder(self.decoder, edit.weights))
