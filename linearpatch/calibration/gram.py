"""Sums of products of two streams, from which least-squares maps between them follow."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from linearpatch.calibration.statistics import Accumulator, LayerInput, PairSums, StreamPair
from linearpatch.models.decoder import Decoder
from linearpatch.models.modeling_linearpatch import EPSILON
from linearpatch.models.places import InProjection
from linearpatch.models.units import Unit, sublayer_before

FP64_BYTES = 8


@dataclass(frozen=True)
class PairGram(StreamPair):
    """Sums of products of rows x from before an interface and rows y from past it; a least-squares map follows.

    Results in fp64, w the weights that `weighting` names:

    `xx`: Σ w xᵀx · `xy`: Σ w xᵀy · `yy`: Σ w ‖y‖² · `energy`: Σ w ‖stream end_layer‖² · `count`: number of
    tokens · `bias`: 1 where rows x end in a 1, else 0.

    Attributes:
        weighting: `none`: w = 1 · `capped`: tokens of more than three times their block's median ‖y‖ count as one
            of that norm (`LayerInput.capped`) · `relative`: w = 1/‖y‖².
    """

    weighting: str = "none"

    @property
    def has_bias(self) -> bool:
        """Whether rows x end in a 1."""
        return False

    def width(self, decoder: Decoder) -> int:
        """Columns of rows x, without a 1."""
        return decoder.hidden_size

    def sum_bytes(self, decoder: Decoder) -> int:
        """Those of Σ w xᵀx and Σ w xᵀy."""
        columns = self.width(decoder) + self.has_bias
        return FP64_BYTES * columns * (columns + decoder.hidden_size)

    def weights(self, after: LayerInput, energy: Tensor) -> Tensor | None:
        """The weight of each token, `[tokens, 1]`; None: 1.

        Args:
            after: Stream `end_layer`.
            energy: ‖y‖² of each of its tokens, `[tokens, 1]` in fp64.
        """
        if self.weighting == "capped":
            return after.capped
        return 1 / energy if self.weighting == "relative" else None

    @abstractmethod
    def rows(self, before: LayerInput, after: Tensor) -> tuple[Tensor, Tensor]:
        """Rows x (without a 1) and y.

        Args:
            before: What layer `start_layer` reads.
            after: Stream `end_layer`, `[tokens, hidden_size]` in fp64.
        """

    def start(self, num_layers: int) -> Accumulator:
        """Keep the sums of products."""
        return _Sums(self)


class _Sums(PairSums):
    def __init__(self, spec: PairGram) -> None:
        super().__init__(spec.start_layer, spec.end_layer)
        self.spec = spec
        self.count = 0

    def observe_pair(self, before: LayerInput, after: LayerInput) -> None:
        stream = after.tokens.double()
        energy = stream.square().sum(dim=-1, keepdim=True)
        x, y = self.spec.rows(before, stream)
        if self.spec.has_bias:
            x = functional.pad(x, (0, 1), value=1.0)
        self.add(x, y, energy, self.spec.weights(after, energy))
        self.count += len(y)

    def add(self, x: Tensor, y: Tensor, energy: Tensor, weight: Tensor | None) -> None:
        """Add rows x with targets y, each row weighted."""
        weighted = x if weight is None else x * weight
        squares = y.square() if weight is None else y.square() * weight
        total = energy.sum() if weight is None else (energy * weight).sum()
        self.accumulate_product("xx", weighted, x)
        self.accumulate_product("xy", weighted, y)
        self.accumulate(yy=squares.sum(), energy=total)

    def result(self) -> dict[str, Tensor]:
        facts = {"count": float(self.count), "bias": float(self.spec.has_bias)}
        sums = {name: total.cpu() for name, total in self.sums.items()}
        return sums | {name: torch.tensor(fact).double() for name, fact in facts.items()}


@dataclass(frozen=True)
class Gram(PairGram):
    """Rows x of stream `start_layer`, followed by a 1 where `bias` is set, and rows y of stream `end_layer`.

    Where `normalised` is set, rows x are those of the stream over their root mean square (`epsilon` is added to the
    mean square), and rows y what the interface adds to the stream.
    """

    bias: bool = False
    normalised: bool = False
    epsilon: float = EPSILON

    @property
    def has_bias(self) -> bool:
        """As asked for."""
        return self.bias

    def rows(self, before: LayerInput, after: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams."""
        x = before.tokens.to(after)
        if self.normalised:
            return normalised(x, self.epsilon), after - x
        return x, after


@dataclass(frozen=True)
class MlpGram(PairGram):
    """Rows from which a map of one MLP's output follows that makes up for an interface.

    Layer `start_layer − 1` reads x, its MLP adds m. A map A of m alone gives x_start − m + m A; for that to
    be stream `end_layer`, m A must be t = x_end − x_start + m. Rows x are m, rows y are t.
    """

    def mlp_layers(self) -> tuple[int, ...]:
        """The last layer before the interface."""
        return (int(self.start_layer) - 1,)

    def rows(self, before: LayerInput, after: Tensor) -> tuple[Tensor, Tensor]:
        """What the MLP adds, and what it would have to add."""
        assert before.mlp_output is not None
        added = before.mlp_output.reshape(len(after), -1).to(after)
        return added, after - before.tokens.to(after) + added


@dataclass(frozen=True)
class RefitGram(PairGram):
    """Rows from which a stream past an interface follows by the stream before it and by what made that.

    Rows x are [x, h, 1] with x of stream `start_layer` and h what the output projection of the sublayer before it
    reads; rows y are those of stream `end_layer`.
    """

    @property
    def has_bias(self) -> bool:
        """Always."""
        return True

    def width(self, decoder: Decoder) -> int:
        """Those of x and h."""
        return decoder.hidden_size + _units_read(decoder, self.start_layer)

    def projections(self) -> tuple[Unit, ...]:
        """The last sublayer before the interface."""
        return (sublayer_before(self.start_layer),)

    def rows(self, before: LayerInput, after: Tensor) -> tuple[Tensor, Tensor]:
        """The stream and what the product reads; the stream past the interface."""
        assert before.projected is not None
        return torch.cat([before.tokens.to(after), before.projected.reshape(len(after), -1).to(after)], dim=-1), after


@dataclass(frozen=True)
class NormedGram(PairGram):
    """Rows from which a stream past an interface follows by the normalised stream before it, and by what made that.

    Rows x are [x, n(x), 1], n(x) the stream over its root mean square. As long as no weight is given, what the
    output projection of the sublayer before it reads, h, is between n(x) and the 1; with Δ given, x is the stream that
    this projection leaves when its weight has changed by Δ: x + h Δ.

    Attributes:
        epsilon: Added to the mean square.
        change: Δ, `[hidden units, hidden_size]` in fp64.
        change_hash: What identifies it.
    """

    epsilon: float = EPSILON
    change_hash: str = ""
    change: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def has_bias(self) -> bool:
        """Always."""
        return True

    def width(self, decoder: Decoder) -> int:
        """Those of x and n(x), and of h where it is among them."""
        units = _units_read(decoder, self.start_layer) if self.change is None else 0
        return 2 * decoder.hidden_size + units

    def identity(self) -> dict[str, Any]:
        """The hash stands for the weight."""
        return asdict(replace(self, change=None))

    def projections(self) -> tuple[Unit, ...]:
        """The last sublayer before the interface."""
        return (sublayer_before(self.start_layer),)

    def rows(self, before: LayerInput, after: Tensor) -> tuple[Tensor, Tensor]:
        """The stream, as it is and normalised, and what the product reads or makes of it; the stream past it."""
        assert before.projected is not None
        x, h = before.tokens.to(after), before.projected.reshape(len(after), -1).to(after)
        if self.change is None:
            return torch.cat([x, normalised(x, self.epsilon), h], dim=-1), after
        x = x + h @ self.change.to(h)
        return torch.cat([x, normalised(x, self.epsilon)], dim=-1), after


def _units_read(decoder: Decoder, start_layer: float) -> int:
    """How many hidden units the output projection of the sublayer before an interface reads."""
    before = sublayer_before(start_layer)
    return InProjection.projection_of(decoder, before.layer, before.part).width


def normalised(x: Tensor, epsilon: float) -> Tensor:
    """Rows over their root mean square, in their precision."""
    return x * (x.square().mean(dim=-1, keepdim=True) + epsilon).rsqrt()
