"""The model that lm_eval sees: whatever view is measured, with one tokenisation for all of them."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from linearpatch.errors import ConfigError
from linearpatch.evaluation.harness.scoring import Score, score
from linearpatch.models.decoder import Decoder
from linearpatch.runtime.memory import BatchSize

log = logging.getLogger(__name__)


class HarnessModel(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """lm_eval's model for transformers, with scoring of its own; prompts, tokens and generation are lm_eval's.

    Args:
        decoder: The first model to measure; `measure` changes it.
        tokenizer: The tokenizer of all of them.
        batch_size: Sequences in one forward pass.
        max_length: Longer sequences lose their first tokens; None takes the model's own limit.
        share: Read common beginnings of requests once.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Any, *, batch_size: BatchSize, max_length: int | None, share: bool
    ) -> None:
        super().__init__(
            pretrained=decoder.model, tokenizer=tokenizer, batch_size=batch_size.rows, max_length=max_length
        )
        self._rows = batch_size
        self._share = share
        self._encoded: dict[tuple[str, str], tuple[array[int], array[int]]] = {}  # compact
        self.measure(decoder, lambda share: None)

    def measure(self, decoder: Decoder, on_step: Callable[[float], object]) -> None:
        """Answer for this model from now on; `on_step` gets the share of each call's requests that is done."""
        self._decoder, self._on_step = decoder, on_step
        self._model, self._device = decoder.model, decoder.input_device
        self._tokens = hashlib.sha256()
        self._generating = 1

    @property
    def token_hash(self) -> str:
        """Hash of all tokens read since `measure`, in the order of the requests."""
        return self._tokens.hexdigest()[:16]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Score]:
        """Scores of pairs of context and continuation."""
        scores: list[Score] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihoods of whole texts."""
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return scores

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continuations up to a stop sequence."""
        self.batch_size_per_gpu, self._generating = self._rows.rows, len(requests)
        for request in requests:
            self._hash(self.tok_encode(request.args[0]))
        texts: list[str] = super().generate_until(requests, disable_tqdm=True)
        return texts

    def _encode_pair(self, context: str, continuation: str) -> tuple[array[int], array[int]]:
        pair = (context, continuation)
        if pair not in self._encoded:
            first, second = super()._encode_pair(context, continuation)
            self._encoded[pair] = array("i", first), array("i", second)
        return self._encoded[pair]

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[Score]:
        longest, too_long = 0, 0
        for _, context, continuation in requests:
            self._hash(context)
            self._hash(continuation)
            longest = max(longest, len(continuation))
            too_long += len(context) + len(continuation) > self.max_length + 1
        if longest > self.max_length:
            raise ConfigError(
                f"An answer has {longest} tokens, more than {self._rows.owner}.max_length={self.max_length}. Set "
                "it larger, or leave it out for the model's own limit."
            )
        if too_long:
            log.warning(
                "%d of %d requests are longer than %d tokens and lose their first ones",
                too_long,
                len(requests),
                self.max_length,
            )
        return score(
            self._decoder,
            [(context, continuation) for _, context, continuation in requests],
            batch_size=self._rows,
            max_length=self.max_length,
            share=self._share,
            on_requests=lambda count: self._on_step(count / len(requests)),
        )

    def _hash(self, tokens: Sequence[int]) -> None:
        self._tokens.update(array("i", tokens).tobytes() + b"|")

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        """Generate for a batch, in parts where memory doesn't suffice."""
        parts: list[Tensor] = []
        mask = settings.pop("attention_mask")
        for rows, part in self._rows.over(
            range(len(context)),
            lambda rows: HFLM._model_generate(
                self, context[list(rows)], max_length, stop, attention_mask=mask[list(rows)], **settings
            ),
        ):
            parts.append(part)
            self._on_step(len(rows) / self._generating)
        longest = max(part.shape[1] for part in parts)
        pad = self.tokenizer.pad_token_id
        return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=pad) for part in parts])
