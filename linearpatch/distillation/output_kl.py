"""The paper's distillation: the dense model's likeliest tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from linearpatch.distillation.logit_loss import LogitLoss
from linearpatch.distillation.top_k import TopK, top_k_kl, top_k_targets
from linearpatch.distillation.training import Keeping, Lesson
from linearpatch.errors import ConfigError, require_choice, require_range
from linearpatch.models.decoder import Decoder
from linearpatch.models.runner import Runner
from linearpatch.registry import component

TARGETS = ("online", "cached")


@component("distill", "output_kl", title="top-K KL")
@dataclass(frozen=True)
class OutputKL(LogitLoss):
    """KL divergence from the dense model's top-K probabilities, renormalised (LinearPatch, section 3.4).

    Attributes:
        top_k: K.
        targets: `online` computes them in each step and needs no disk; `cached` keeps them for further epochs and
            runs: 6 K bytes a token.
        keep_states: Keep the stream before the first interface as well, in bf16: 2 bytes a token and channel, and
            further epochs and runs skip the dense model.
    """

    top_k: int = 100
    targets: str = field(default="online", metadata={"identity": False})
    keep_states: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("distill.top_k", self.top_k, low=2)
        require_choice("distill.targets", self.targets, TARGETS)
        if self.keep_states and self.targets != "cached":
            raise ConfigError(
                f"distill.keep_states=true keeps nothing with distill.targets={self.targets}. Use "
                "distill.targets=cached."
            )

    def check(self, decoder: Decoder) -> None:
        """Reject a K that exceeds the vocabulary as well."""
        super().check(decoder)
        if self.top_k > decoder.vocab_size:
            raise ConfigError(
                f"distill.top_k is {self.top_k}, but the model's vocabulary has {decoder.vocab_size} tokens. Allowed: "
                f"2 to {decoder.vocab_size}."
            )

    @property
    def keeping(self) -> Keeping | None:
        """Targets in fp16 and int32, where they are to be kept."""
        key = {"loss": "output_kl", "top_k": self.top_k, "temperature": self.temperature}
        return Keeping(key, 6 * self.top_k, self.keep_states) if self.targets == "cached" else None

    def teach(self, decoder: Decoder, streams: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Top-K probabilities (fp16) and indices (int32), `[batch, tokens, K]`."""
        normed = decoder.final_norm(streams[decoder.num_layers])
        targets = top_k_targets(decoder, normed, self.top_k, self.temperature)
        return {"probabilities": targets.probabilities, "indices": targets.indices}

    def loss(self, student: Runner, lesson: Lesson) -> Tensor:
        """The divergence at the K indices."""
        normed = student.edited.final_norm(student.run(lesson.stream, lesson.calls))
        targets = TopK(lesson.targets["probabilities"], lesson.targets["indices"])
        return top_k_kl(
            student.edited, normed, targets, self.temperature, self.divergence, self.mixture, self.token_weighting
        )
