"""How nearly linear what lies between two places of the stream is: canonical correlations and the bound they give.

NBL (Erdogan et al. 2025, "Efficient large language model inference with neural block linearization", theorem 3.2): the
mean squared error of the best linear map of X to Y, relative to the variance of Y, is at most (D − r) + Σ (1 − ρᵢ²), ρᵢ
their r canonical correlations. Here X is the normed stream that a sublayer reads, and Y the stream past it: what it
adds and what was there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from linearpatch.calibration.gram import FP64_BYTES, normalised
from linearpatch.calibration.statistics import Accumulator, LayerInput, PairSums, StreamPair
from linearpatch.models.decoder import Decoder
from linearpatch.models.modeling_linearpatch import EPSILON

SMALLEST = 1e-9  # of the largest variance: directions with less are left out, as rounding owns them


@dataclass(frozen=True)
class CanonicalBound(StreamPair):
    """The bound of what lies between two places of the stream.

    Results: `correlations`: ρ in descending order, `[D]` · `bound`: Σ (1 − ρᵢ²), directions in which Y doesn't vary
    left out · `error`: the relative error of the least-squares map itself, which is never larger.
    """

    def sum_bytes(self, decoder: Decoder) -> int:
        """Those of three products of the streams."""
        return 3 * FP64_BYTES * decoder.hidden_size**2

    def start(self, num_layers: int) -> Accumulator:
        """Keep sums of products."""
        return _Products(self)


class _Products(PairSums):
    def __init__(self, spec: CanonicalBound) -> None:
        super().__init__(spec.start_layer, spec.end_layer)
        self.count = 0

    def observe_pair(self, before: LayerInput, after: LayerInput) -> None:
        y = after.tokens.double()
        x = normalised(before.tokens.to(y), EPSILON)
        self.accumulate(x=x.sum(0), y=y.sum(0))
        for name, left, right in (("xx", x, x), ("xy", x, y), ("yy", y, y)):
            self.accumulate_product(name, left, right)
        self.count += len(y)

    def result(self) -> dict[str, Tensor]:
        sums, n = self.sums, self.count
        mean_x, mean_y = sums["x"] / n, sums["y"] / n
        xx = sums["xx"] / n - mean_x[:, None] * mean_x
        xy = sums["xy"] / n - mean_x[:, None] * mean_y
        yy = sums["yy"] / n - mean_y[:, None] * mean_y
        return {name: value.cpu() for name, value in bound_of(xx, xy, yy).items()}


def bound_of(xx: Tensor, xy: Tensor, yy: Tensor) -> dict[str, Tensor]:
    """Canonical correlations of two variables and what follows from them.

    Args:
        xx: Covariance of X, `[D, D]`.
        xy: Of X and Y.
        yy: Of Y.
    """
    white_x, white_y = _whitening(xx), _whitening(yy)
    correlations = torch.linalg.svdvals(white_x.T @ xy @ white_y).clamp(0, 1)
    unexplained = white_y.shape[1] - correlations.square().sum()
    explained = (white_x.T @ xy).square().sum()
    return {"correlations": correlations, "bound": unexplained, "error": 1 - explained / yy.trace()}


def _whitening(covariance: Tensor) -> Tensor:
    """V with Vᵀ C V = I, over the directions in which there is variance, `[D, directions]`."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > SMALLEST * values[-1]
    whitening: Tensor = vectors[:, kept] * values[kept].rsqrt()
    return whitening
