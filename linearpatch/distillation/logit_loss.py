"""What the losses over the vocabulary share."""

from __future__ import annotations

import logging
from abc import ABC
from dataclasses import dataclass

from linearpatch.distillation.divergence import DIVERGENCES
from linearpatch.distillation.training import Training
from linearpatch.errors import ConfigError, require_choice, require_range
from linearpatch.models.runner import Runner

log = logging.getLogger(__name__)

TOKEN_WEIGHTINGS = ("none", "entropy")


@dataclass(frozen=True)
class LogitLoss(Training, ABC):
    """Compares the student's next-token distribution with the dense model's.

    Attributes:
        temperature: Divides both models' logits.
        divergence: `forward`, the KL divergence of the student from the teacher; `reverse`, of the teacher from the
            student; `jsd`, the Jensen-Shannon divergence with the weight `mixture`.
        mixture: β of `jsd`: the teacher's share of what both are compared with.
        token_weighting: `none`, or `entropy`: a token's divergence counts in proportion to the entropy of the dense
            model's distribution there, relative to the batch's mean, so that tokens which any model foresees count
            little.
    """

    temperature: float = 1.0
    divergence: str = "forward"
    mixture: float = 0.5
    token_weighting: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("distill.temperature", self.temperature, low=0.01, high=100)
        require_choice("distill.divergence", self.divergence, DIVERGENCES)
        require_choice("distill.token_weighting", self.token_weighting, TOKEN_WEIGHTINGS)
        if not 0 < self.mixture < 1:
            raise ConfigError(
                f"distill.mixture is {self.mixture}. Allowed: more than 0 and less than 1; for a divergence to one "
                "side use distill.divergence=forward or reverse."
            )
        if self.divergence != "jsd" and self.mixture != LogitLoss.mixture:
            log.warning(
                "distill.mixture=%s has no effect with distill.divergence=%s. Use distill.divergence=jsd, or leave "
                "distill.mixture out.", self.mixture, self.divergence,
            )  # fmt: skip

    def streams(self, student: Runner) -> set[int]:
        """What enters the final norm."""
        return {student.decoder.num_layers}
