"""Text in batches, with random choices that belong to sequences, not to batches.

Every sequence has random numbers of its own, one for each token. So what it becomes doesn't depend on which others are
in its batch (up to rounding), nor on what was computed before: an interrupted batch repeats exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from linearpatch.models.decoder import Decoder
from linearpatch.runtime.memory import free_memory

MOST_ROWS = {"cpu": 64, "cuda": 512}  # of a batch: more make no token cheaper
SHARE_OF_MEMORY = 0.5  # of what is free, for the keys and values of a batch
FIRST_CANDIDATES = 2048  # likeliest tokens that are sorted; all, where these hold too little probability


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Choose among the likeliest tokens that hold this share of the probability.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def choose(self, logits: Tensor, draws: Tensor | None = None) -> Tensor:
        """The next token of each row.

        Args:
            logits: `[rows, vocabulary]`.
            draws: A number from [0, 1) for each row, fp64: where in the distribution its token is; not needed at
                temperature 0.

        Returns:
            `[rows]` int64.
        """
        if self.temperature == 0 or draws is None:
            return logits.argmax(dim=-1)
        probabilities = (logits.float() / self.temperature).softmax(dim=-1)
        if self.top_p == 1:
            return _drawn(probabilities.cumsum(dim=-1, dtype=torch.float64), draws)
        ordered, tokens = probabilities.topk(min(FIRST_CANDIDATES, probabilities.shape[-1]), dim=-1)
        sums = ordered.cumsum(dim=-1, dtype=torch.float64)
        if bool((sums[:, -1] < self.top_p).any()):
            ordered, tokens = probabilities.sort(dim=-1, descending=True)
            sums = ordered.cumsum(dim=-1, dtype=torch.float64)
        last = (sums < self.top_p).sum(dim=-1, keepdim=True).clamp(max=sums.shape[-1] - 1)  # the token that reaches it
        place = _drawn(sums.minimum(sums.gather(-1, last)), draws)
        return tokens.gather(-1, place[:, None]).squeeze(-1)


def _drawn(sums: Tensor, draws: Tensor) -> Tensor:
    """Where each row's draw falls among cumulative probabilities, which needn't end at 1."""
    places = torch.searchsorted(sums, draws[:, None].to(sums.device) * sums[:, -1:], right=True).squeeze(-1)
    return places.clamp(max=sums.shape[-1] - 1)


def draws_of(name: str, count: int) -> Tensor:
    """The random numbers of a sequence, `[count]` fp64 from [0, 1), always the same for the same name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Chooser(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Makes the chosen token the only one that is possible."""

    def __init__(
        self,
        sampling: Sampling,
        draws: Tensor | None,
        num_tokens: int,
        allowed: int,
        start_after: tuple[int, int] | None,
        on_step: Callable[[float], object],
    ) -> None:
        self._sampling, self._draws, self._num_tokens, self._allowed = sampling, draws, num_tokens, allowed
        self._start_after, self._on_step = start_after, on_step
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self._allowed :] = -torch.inf
        draws = None if self._draws is None else self._draws[:, self._step]
        chosen = self._sampling.choose(scores, draws)
        if self._start_after is not None:
            end, start = self._start_after
            chosen = chosen.masked_fill(input_ids[:, -1] == end, start)
        self._step += 1
        self._on_step(len(chosen) / self._num_tokens)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen[:, None], 0)


@torch.inference_mode()
def continuations(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    draws: Tensor | None,
    sampling: Sampling,
    *,
    num_tokens: int,
    vocabulary: int | None = None,
    stop: Sequence[int] = (),
    start_after: tuple[int, int] | None = None,
    on_step: Callable[[float], object] = lambda count: None,
) -> list[list[int]]:
    """Continue a batch of prompts by transformers' `generate`.

    Args:
        decoder: Any model or view.
        prompts: Tokens, at least one each. Shorter ones are padded on the left and masked.
        draws: Random numbers of each sequence, `[rows, draws]`, at least `num_tokens` of each; None at temperature 0.
        sampling: How tokens are chosen.
        num_tokens: New tokens of each sequence, fewer only where one stops.
        vocabulary: Only tokens below this number are chosen; None allows all that the model knows.
        stop: Tokens that end a sequence; they aren't part of what is returned.
        start_after: A token, and the one that always follows it.
        on_step: Called after each token with the sequences done by it: the share of `num_tokens`, times the rows.

    Returns:
        The new tokens of each.
    """
    longest = max(map(len, prompts))
    pad = stop[0] if stop else 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    device = decoder.input_device
    allowed = min(vocabulary or decoder.vocab_size, decoder.vocab_size)
    chooser = _Chooser(sampling, draws, num_tokens, allowed, start_after, on_step)
    with _own_settings(decoder.model):
        output = decoder.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_processor=LogitsProcessorList([chooser]),
            max_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=pad,
            eos_token_id=list(stop) or None,
        )
    return [_until(row, stop) for row in output[:, longest:].tolist()]


def _until(tokens: list[int], stop: Sequence[int]) -> list[int]:
    """The tokens before the first that ends a sequence; after it `generate` pads."""
    ends = [index for index, token in enumerate(tokens) if token in stop]
    return tokens[: ends[0]] if ends else tokens


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """A model without the settings of its `generation_config.json`, which fill in what isn't given to `generate`."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def rows_that_fit(decoder: Decoder, num_tokens: int) -> int:
    """How many sequences of a length are generated together: what fits into free memory, and no more than is of use."""
    device = decoder.input_device
    most = MOST_ROWS.get(device.type, MOST_ROWS["cuda"])
    free = free_memory(device)
    if free is None:
        return most
    of_a_row = cache_bytes(decoder) * num_tokens + 4 * 4 * decoder.vocab_size  # and a few copies of its logits
    return max(1, min(most, int(SHARE_OF_MEMORY * free / of_a_row)))


def cache_bytes(decoder: Decoder) -> int:
    """Bytes that a model keeps of each token it has read, at most: keys and values of all layers."""
    config = decoder.config
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or decoder.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = kept * size if heads > 1 else decoder.hidden_size
    return int(2 * decoder.num_layers * width * decoder.model.dtype.itemsize)
