"""Perplexity by the protocols of GPTQ, LinearPatch and SparseGPT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from linearpatch.data.blocks import BlockSpec, SettingNames, TokenBlocks
from linearpatch.data.reader import Reader
from linearpatch.errors import require_choice, require_range, settings_of
from linearpatch.evaluation.evaluation import (
    Measured,
    Measurement,
    Subject,
)
from linearpatch.evaluation.text_evaluation import TextEvaluation
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import next_token_nll
from linearpatch.models.model import LoadedModel
from linearpatch.registry import component
from linearpatch.results.metric import Metric
from linearpatch.storage.cache import Cache


@component("eval", "ppl")
@dataclass(frozen=True)
class Perplexity(TextEvaluation):
    """Perplexity on joined text in disjoint windows, or on crops of documents, each read by itself.

    The exponential of the mean next-token loss over all windows; a window of `seq_len` tokens predicts
    `seq_len − 1`. The standard error is that of the windows' mean losses, carried through the exponential.

    Attributes:
        seq_len: Tokens in a window; perplexities at different lengths aren't comparable.
        num_blocks: Only the first so many windows, or so many crops; null takes all windows.
        sampling: `first` joins the documents and takes windows from the start, `document_crops` draws places in
            documents that are long enough, as GPTQ's protocol for C4 does.
        seed: Of the drawing.
        bos: `tokenizer`, `each` or `none`; see `BlockSpec`.
        batch_size: Windows in one forward pass.
    """

    version: ClassVar[int] = 2  # since then the mean loss of each window is kept as an array

    seq_len: int = 2048
    num_blocks: int | None = None
    sampling: str = "first"
    seed: int = 0
    bos: str = "tokenizer"
    batch_size: int = field(default=1, metadata={"identity": False})

    def __post_init__(self) -> None:
        require_range("eval.ppl.batch_size", self.batch_size, low=1)
        require_range("eval.ppl.seq_len", self.seq_len, low=2)
        require_choice("eval.ppl.sampling", self.sampling, ("first", "document_crops"))
        self.check_corpora("ppl")
        with settings_of("eval.ppl"):
            self.spec("ppl")  # checks the rest

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        if self.sampling == "document_crops":
            return f"{self.num_blocks} crops of {self.seq_len} tokens of random documents, bos={self.bos}"
        part = "" if self.num_blocks is None else f", first {self.num_blocks}"
        return f"joined text, disjoint windows of {self.seq_len} tokens{part}, bos={self.bos}"

    def metrics_of_texts(self, reader: Reader) -> tuple[str, ...]:
        """One for each corpus."""
        return tuple(f"ppl/{each.corpus.name}" for each in self.readers(reader))

    def with_windows(self, number: int, length: int) -> Perplexity:
        """The same with the windows that a short text gave."""
        return replace(self, num_blocks=number, seq_len=length)

    def measurement(self, name: str, corpus: str, blocks: TokenBlocks, model: LoadedModel, cache: Cache) -> Measurement:
        """The perplexity of a corpus, called after it alone."""
        label = f"ppl/{corpus}"

        def run(subjects: Sequence[Subject], on_step: Callable[[float], None]) -> list[Measured]:
            return [self._measure(subject.decoder, label, blocks, on_step) for subject in subjects]

        key = {"version": self.version, "protocol": self.protocol, "tokens": {label: blocks.hash}}
        return Measurement(label, key, len(blocks.ids), run)

    def spec(self, name: str) -> BlockSpec:
        """How texts become windows, for the evaluation of that name."""
        names = SettingNames(f"eval.{name}", "seq_len", overlap="")
        return BlockSpec(self.num_blocks, self.seq_len, self.sampling, self.bos, self.seed, names=names)

    def _measure(self, decoder: Decoder, name: str, blocks: TokenBlocks, on_step: Callable[[float], None]) -> Measured:
        losses = window_losses(decoder, blocks.ids, batch_size=self.batch_size, on_step=on_step)
        value = losses.mean().exp().item()
        spread = losses.std(correction=1).item() if len(losses) > 1 else float("nan")
        predicted = blocks.ids[:, 1:].numel()
        stderr = value * spread / len(losses) ** 0.5
        metric = Metric.of(value, stderr, predicted, self.protocol, blocks.hash, headline=True)
        return Measured({name: metric}, arrays={f"{name}/windows": losses})


@torch.inference_mode()
def window_losses(
    decoder: Decoder, ids: Tensor, *, batch_size: int = 1, on_step: Callable[[float], object] = lambda count: None
) -> Tensor:
    """Mean next-token loss of each window, `[windows]` in fp64.

    Args:
        decoder: Any model or view.
        ids: `[windows, tokens]`.
        batch_size: Windows in one forward pass.
        on_step: Called after each forward pass with the number of windows in it.
    """
    losses = []
    for batch in ids.split(batch_size):
        batch = batch.to(decoder.input_device)
        normed = decoder.hidden_states(decoder.forward(batch, use_cache=False))
        losses.append(next_token_nll(decoder, normed, batch).mean(dim=1, dtype=torch.float64).cpu())
        on_step(len(batch))
    return torch.cat(losses)
