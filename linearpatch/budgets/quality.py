"""At most so much worse on text that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linearpatch.budgets.budget import Limit, Limits
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_choice, require_range
from linearpatch.evaluation.dense_states import DenseStates
from linearpatch.evaluation.divergence import divergence_from_dense
from linearpatch.evaluation.perplexity import window_losses
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.loss import logit_rows
from linearpatch.registry import component

Z = 1.96  # standard errors of the 95 % interval

# The loss of a model, its value and standard error, from the means over each window of the dense model and its own.
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@component("budget", "quality")
@dataclass(frozen=True)
class Quality(Limit):
    """The most layers without which the patched model is hardly worse on the tokens held out of calibration.

    Sizes are tried in steps that double and then halve, so that few are fitted; that takes for granted that a model
    without more layers isn't better. The tokens are `calibration.held_out_blocks`, on which pruners and patches may
    have made choices: the loss on other text is somewhat larger. Standard errors are those of the blocks' means, by
    paired differences from the dense model.

    Attributes:
        at_most: The largest loss: 0.1 allows 10 % more perplexity, a divergence of 0.1 nats, or 10 % fewer tokens that
            are predicted right.
        measure: `perplexity`, `divergence` (KL from the dense model, mean over tokens) or `accuracy` (share of the next
            tokens that the dense model predicts right and this one retains).
        certain: A size is within the limit where the upper end of its 95 % interval is.
    """

    takes_most: ClassVar[bool] = True
    needs_held_out: ClassVar[bool] = True

    at_most: float = 0.1
    measure: str = "perplexity"
    certain: bool = False

    def __post_init__(self) -> None:
        require_range("budget.at_most", self.at_most, low=0)
        if self.at_most == 0:
            raise ConfigError("budget.at_most is 0, and every removal loses something. Allowed: above 0, such as 0.1.")
        require_choice("budget.measure", self.measure, MEASURES)

    @property
    def label(self) -> str:
        """Such as `perplexity0.1`."""
        return f"{self.measure}{self.at_most}"

    def limits(self, workspace: Workspace, sizes: Sequence[int]) -> Limits:
        """Measured on the held-out tokens."""
        dense = DenseStates(workspace.decoder, workspace.held_out.ids)
        unit, windows, loss = MEASURES[self.measure]
        base = windows(dense, dense.decoder)

        def measure(edit: Edit) -> tuple[float, float | None]:
            value, stderr = loss(base, windows(dense, edit.decoder(dense.decoder)))
            return value.item(), stderr.item() if len(base) > 1 else None

        return Limits(self.at_most, 0.0, unit, measure, margin=Z if self.certain else 0.0)


def _nll(dense: DenseStates, model: Decoder) -> Tensor:
    return window_losses(model, dense.ids)


def _divergence(dense: DenseStates, model: Decoder) -> Tensor:
    if model is dense.decoder:
        return torch.zeros(len(dense.ids), dtype=torch.float64)
    return divergence_from_dense(dense, model)[0].double().mean(dim=1)


@torch.inference_mode()
def _accuracy(dense: DenseStates, model: Decoder) -> Tensor:
    """Share of each window's tokens that are the likeliest, `[windows]` in fp64."""
    shares = []
    for window in dense.ids.to(model.input_device):
        hidden = model.hidden_states(model.forward(window[None], use_cache=False))[0, :-1]
        chunks = hidden.split(logit_rows(model, hidden.device))
        predicted = torch.cat([model.logits(chunk).argmax(dim=-1) for chunk in chunks])
        shares.append((predicted == window[1:].to(predicted.device)).double().mean().cpu())
    return torch.stack(shares)


def more_perplexity(dense: Tensor, model: Tensor) -> tuple[Tensor, Tensor]:
    """By what share perplexity grows, from the mean losses of each window."""
    difference = model - dense
    ratio = difference.mean().exp()
    return ratio - 1, ratio * _error(difference)


def more_divergence(dense: Tensor, model: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the windows' divergences."""
    return model.mean(), _error(model)


def less_accuracy(dense: Tensor, model: Tensor) -> tuple[Tensor, Tensor]:
    """What share of the accuracy isn't retained, from that of each window."""
    retained = model.mean() / dense.mean()
    return 1 - retained, _error(model - retained * dense) / dense.mean()


def _error(values: Tensor) -> Tensor:
    spread: Tensor = values.std(correction=min(1, len(values) - 1))
    error: Tensor = spread / len(values) ** 0.5
    return error


MEASURES: dict[str, tuple[str, Callable[[DenseStates, Decoder], Tensor], Loss]] = {
    "perplexity": ("of the perplexity more", _nll, more_perplexity),
    "divergence": ("nats", _divergence, more_divergence),
    "accuracy": ("of the accuracy less", _accuracy, less_accuracy),
}
