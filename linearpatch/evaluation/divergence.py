"""How far a model's predictions are from the dense model's, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from linearpatch.data.blocks import BlockSpec, SettingNames, TokenBlocks
from linearpatch.errors import require_range, settings_of
from linearpatch.evaluation.dense_states import DenseStates
from linearpatch.evaluation.evaluation import Measured, Measurement, Subject
from linearpatch.evaluation.text_evaluation import TextEvaluation
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import compare_logits, logit_rows
from linearpatch.models.model import LoadedModel
from linearpatch.registry import component
from linearpatch.results.metric import Metric
from linearpatch.storage.cache import Cache

QUANTILES = {"kl_median": 0.5, "kl_p90": 0.9, "kl_p99": 0.99}


@component("eval", "divergence")
@dataclass(frozen=True)
class Divergence(TextEvaluation):
    """KL divergence from the dense model on the same tokens, and how often both predict the same token.

    At every position of every window: KL(dense ‖ model) over the whole vocabulary in nats, its mean (`kl`), median and
    upper percentiles, and the share of positions at which both models' likeliest tokens agree (`agreement`). Standard
    errors of the means are those of the windows' means. Unlike perplexity it doesn't reward a model for fitting the
    text better than the dense model does, and it needs few tokens: every position counts, not only what the text says.

    Attributes:
        seq_len: Tokens in a window.
        num_blocks: Only the first so many windows; null takes all.
        bos: `tokenizer`, `each` or `none`; see `BlockSpec`.
        batch_size: Windows in one forward pass.
    """

    version: ClassVar[int] = 1

    seq_len: int = 1024
    num_blocks: int | None = 16
    bos: str = "tokenizer"
    batch_size: int = field(default=1, metadata={"identity": False})

    def __post_init__(self) -> None:
        require_range("eval.divergence.batch_size", self.batch_size, low=1)
        require_range("eval.divergence.seq_len", self.seq_len, low=2)
        self.check_corpora("divergence")
        with settings_of("eval.divergence"):
            self.spec("divergence")  # checks the rest

    @property
    def needs_dense(self) -> bool:
        """It compares with the dense model."""
        return True

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        part = "" if self.num_blocks is None else f", first {self.num_blocks}"
        return f"against the dense model, disjoint windows of {self.seq_len} tokens{part}, bos={self.bos}"

    def spec(self, name: str) -> BlockSpec:
        """How texts become windows, for the evaluation of that name."""
        names = SettingNames(f"eval.{name}", "seq_len", overlap="")
        return BlockSpec(self.num_blocks, self.seq_len, "first", self.bos, names=names)

    def with_windows(self, number: int, length: int) -> Divergence:
        """The same with the windows that a short text gave."""
        return replace(self, num_blocks=self.num_blocks and number, seq_len=length)

    def measurement(self, name: str, corpus: str, blocks: TokenBlocks, model: LoadedModel, cache: Cache) -> Measurement:
        """The divergence on a corpus."""
        label = f"{name}/{corpus}"

        def run(subjects: Sequence[Subject], on_step: Callable[[float], None]) -> list[Measured]:
            states = DenseStates(
                model.decoder, blocks.ids, cache=cache, key={"model": model.key, "tokens": blocks.hash}
            )
            return [self._measure(subject, label, blocks, states, on_step) for subject in subjects]

        key = {"version": self.version, "protocol": self.protocol, "tokens": {label: blocks.hash}}
        return Measurement(label, key, len(blocks.ids), run)

    def _measure(
        self, subject: Subject, label: str, blocks: TokenBlocks, states: DenseStates, on_step: Callable[[float], None]
    ) -> Measured:
        if subject.decoder is subject.dense:  # by definition
            shape = blocks.ids.shape
            divergence = torch.zeros(shape), torch.ones(shape)
        else:
            divergence = divergence_from_dense(states, subject.decoder, batch_size=self.batch_size, on_step=on_step)
        kl, agrees = (values.double() for values in divergence)
        windows = {"kl": kl.mean(dim=1), "agreement": agrees.mean(dim=1)}

        def metric(value: Tensor, stderr: float | None = None, **more: Any) -> Metric:
            return Metric.of(value.item(), stderr, kl.numel(), self.protocol, blocks.hash, **more)

        metrics = {
            f"{label}/kl": metric(kl.mean(), _standard_error(windows["kl"]), headline=True),
            **{f"{label}/{key}": metric(quantile(kl, share)) for key, share in QUANTILES.items()},
            f"{label}/agreement": metric(agrees.mean(), _standard_error(windows["agreement"]), unit="share"),
        }
        return Measured(metrics, arrays={f"{label}/{key}/windows": values for key, values in windows.items()})


@torch.inference_mode()
def divergence_from_dense(
    dense: DenseStates,
    model: Decoder,
    *,
    batch_size: int = 1,
    on_step: Callable[[float], object] = lambda count: None,
) -> tuple[Tensor, Tensor]:
    """KL(dense ‖ model) at each position, and whether the likeliest tokens agree.

    Logits over the whole vocabulary exist for a chunk of positions at a time.

    Args:
        dense: The dense model's states on the windows.
        model: A view of the dense model.
        batch_size: Windows in one forward pass of each model.
        on_step: Called after each batch with the number of windows in it.

    Returns:
        Both `[windows, tokens]`: the divergence in fp32, in nats, and ones and zeros.
    """
    divergence = torch.empty(dense.ids.shape)
    agrees = torch.empty(dense.ids.shape)
    flat, flat_agrees = divergence.view(-1), agrees.view(-1)
    head = dense.decoder
    rows = max(1, logit_rows(head, head.input_device) // 2)  # the logits of two models
    position = 0
    for batch, of_dense in zip(dense.ids.split(batch_size), dense.batches(batch_size), strict=True):
        own = model.hidden_states(model.forward(batch.to(model.input_device), use_cache=False))
        for expected, actual in zip(*(states.flatten(0, 1).split(rows) for states in (of_dense, own)), strict=True):
            part = slice(position, position + len(expected))
            flat[part], flat_agrees[part] = compare_logits(head.logits(expected).float(), model.logits(actual).float())
            position = part.stop
        on_step(len(batch))
    return divergence, agrees


def quantile(values: Tensor, share: float) -> Tensor:
    """Quantile of any number of values, interpolated linearly; `torch.quantile` takes no more than 2²⁴."""
    ordered = values.flatten().sort().values
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low)


def _standard_error(windows: Tensor) -> float | None:
    return windows.std(correction=1).item() / len(windows) ** 0.5 if len(windows) > 1 else None
