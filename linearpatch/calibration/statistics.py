"""What can be learnt from one pass over the dense model: many statistics listening to the same streams.

A statistic is a frozen value that says what is wanted. `start` gives it an accumulator, which sees the
input of every layer of every batch and keeps only sums: memory doesn't depend on the number of samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from linearpatch.errors import require_choice
from linearpatch.linalg.hadamard import hadamard_transform
from linearpatch.models.decoder import Decoder
from linearpatch.models.units import Unit

BASES = ("channel", "hadamard")
MOST_MEDIAN_NORMS = 3.0  # as one of which a token counts at most in sums of squares that are capped


def inside(*streams: float) -> list[int]:
    """Layers of which streams are read between attention and MLP.

    >>> inside(3, 4.5)
    [4]
    """
    return [int(stream) for stream in streams if stream != int(stream)]


def ratio(after: Tensor, before: Tensor) -> Tensor:
    """`after / before`, and 1 where there was nothing before: a channel that is always 0 stays as it is."""
    return torch.where(before > 0, after / before, torch.ones_like(after))


class LayerInput:
    """The stream that one layer reads in one batch; what several statistics need of it is computed once.

    Attributes:
        index: The layer, or the number of layers for the final norm; `i + ½` for the MLP of layer i.
        hidden: `[blocks, tokens, hidden_size]` in the model's dtype.
        mlp_output: What the MLP of the layer before added to it, where a statistic asked for that layer.
        projected: What the output projection of the sublayer before read, where a statistic asked for that.
        routed: How many tokens each expert of the layer before got, where it has some and a statistic asked for that.
    """

    def __init__(
        self, index: float, hidden: Tensor, mlp_output: Tensor | None = None, projected: Tensor | None = None
    ) -> None:
        self.index = index
        self.hidden = hidden
        self.mlp_output = mlp_output
        self.projected = projected
        self.routed: Tensor | None = None

    @cached_property
    def tokens(self) -> Tensor:
        """All tokens in fp32 (a half-precision dot product overflows on massive activations), `[n, D]`."""
        return self.hidden.reshape(-1, self.hidden.shape[-1]).float()

    @cached_property
    def norms(self) -> Tensor:
        """Euclidean norm of each token, `[n]`."""
        norms: Tensor = torch.linalg.vector_norm(self.tokens, dim=-1)
        return norms

    @cached_property
    def rotated(self) -> Tensor:
        """All tokens in the Hadamard basis, `[n, D]`."""
        return hadamard_transform(self.tokens)

    @cached_property
    def capped(self) -> Tensor:
        """Weights with which no token counts as one of more than three times its block's median norm, `[n, 1]`, fp64.

        The first token of a block and special tokens have a hundred times the norm of others in most models; a few
        of them would own every sum of squares (experiments/relative_weighting).
        """
        norms = self.norms.double().view(self.hidden.shape[:2])
        most = MOST_MEDIAN_NORMS * norms.median(dim=1, keepdim=True).values
        return (most / norms).clamp(max=1).square().view(-1, 1)

    def in_basis(self, basis: str) -> Tensor:
        """All tokens in one of `BASES`, `[n, D]`."""
        return self.rotated if basis == "hadamard" else self.tokens


class Accumulator(Protocol):
    """Sums over a pass."""

    def observe(self, stream: LayerInput) -> None:
        """See the next layer's input; layers come in order, batch after batch."""

    def result(self) -> dict[str, Tensor]:
        """The finished statistic, on the CPU in fp64."""


class Statistic(ABC):
    """A quantity that one pass over the dense model yields; subclasses are frozen dataclasses."""

    version: ClassVar[int] = 1

    @abstractmethod
    def start(self, num_layers: int) -> Accumulator:
        """An accumulator for a model with so many layers."""

    def sum_bytes(self, decoder: Decoder) -> int:
        """Bytes of its sums while a pass runs; sums that grow with the width alone, not with its square, count as 0."""
        return 0

    def identity(self) -> dict[str, Any]:
        """What distinguishes it from others of its class, as plain values for cache keys."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def deepest(self, num_layers: int) -> float:
        """The last stream it needs; a pass stops at the deepest of all that listen."""
        return num_layers

    def between(self, num_layers: int) -> Collection[int]:
        """Layers of which it needs the stream between attention and MLP; it is shown no others."""
        return ()

    def of_sublayers(self) -> Statistic:
        """What it is where sublayers are removed: the same, with the streams between them."""
        return self

    def mlp_layers(self) -> tuple[int, ...]:
        """Layers whose MLP output it needs, too."""
        return ()

    def projections(self) -> tuple[Unit, ...]:
        """Sublayers of which it needs what their output projection reads."""
        return ()

    def expert_layers(self) -> tuple[int, ...]:
        """Layers of which it needs how many tokens each expert gets."""
        return ()


@dataclass(frozen=True)
class WindowCosine(Statistic):
    """Mean cosine between each token's stream before and after a window of layers.

    Result `cosine`: `[L - window + 1]`, entry l compares streams l and l + window. Every stream is taken
    before the final norm. ShortGPT's block influence is 1 − cosine at window 1 (section 3.1), the metric
    of LLM-Streamline and of LinearPatch (section 3.1, eq. 2) is the cosine at window n.
    """

    window: int

    def start(self, num_layers: int) -> Accumulator:
        """Keep sums of cosines."""
        return _WindowMean("cosine", self.window, num_layers, self.compare)

    @staticmethod
    def compare(before: LayerInput, after: LayerInput) -> tuple[Tensor, int]:
        """Sum of cosines over tokens, and their number."""
        # vecdot reads each operand once and writes one number a token.
        dots = torch.linalg.vecdot(before.tokens, after.tokens.to(before.tokens.device))
        scale = before.norms * after.norms.to(before.norms.device)
        return (dots / scale.clamp_min(torch.finfo(torch.float32).tiny)).sum(dtype=torch.float64), len(dots)


@dataclass(frozen=True)
class LastTokenAngle(Statistic):
    """Mean angle, as a fraction of π, between the last token's stream before and after a window of layers.

    Result `angle`: `[L - window + 1]`. Gromov et al., "The unreasonable ineffectiveness of the deeper
    layers", eq. 6: arccos(cos)/π at the last token of each block.
    """

    window: int

    def start(self, num_layers: int) -> Accumulator:
        """Keep sums of angles."""
        return _WindowMean("angle", self.window, num_layers, self.compare)

    @staticmethod
    def compare(before: LayerInput, after: LayerInput) -> tuple[Tensor, int]:
        """Sum of angles over blocks, and their number."""
        first, last = before.hidden[:, -1].float(), after.hidden[:, -1].float()
        cosine = functional.cosine_similarity(first, last.to(first.device), dim=-1)
        # Rounding can carry a cosine past 1, where arccos is not a number.
        angle = torch.arccos(cosine.clamp(-1, 1)) / torch.pi
        return angle.sum(dtype=torch.float64), len(angle)


class _WindowMean:
    """Compares each stream with the one `window` layers before; keeps `window + 1` streams of one batch."""

    def __init__(
        self,
        name: str,
        window: int,
        num_layers: int,
        compare: Callable[[LayerInput, LayerInput], tuple[Tensor, int]],
    ) -> None:
        self.name = name
        self.compare = compare
        self.recent: deque[LayerInput] = deque(maxlen=window + 1)
        self.window = window
        self.sums: list[Tensor | None] = [None] * (num_layers - window + 1)
        self.count = 0

    def observe(self, stream: LayerInput) -> None:
        if stream.index == 0:
            self.recent.clear()
        self.recent.append(stream)
        start = int(stream.index) - self.window
        if start >= 0:
            total, count = self.compare(self.recent[0], stream)
            previous = self.sums[start]
            self.sums[start] = total if previous is None else previous + total
            self.count += count if start == 0 else 0
        if stream.index == len(self.sums) - 1 + self.window:
            self.recent.clear()

    def result(self) -> dict[str, Tensor]:
        return {self.name: on_cpu(self.sums) / self.count}


@dataclass(frozen=True)
class Magnitude(Statistic):
    """Mean absolute value of each channel of the stream that each layer reads.

    Result `magnitude`: `[L + 1, D]`. LinearPatch eq. 4 divides two of its rows. In the `hadamard` basis
    the channels are those of the rotated stream X·H (section 3.3). With `sublayers`, of what each sublayer reads,
    `[2 L + 1, D]`: row 2 i for layer i, row 2 i + 1 for its MLP.
    """

    basis: str = "channel"
    sublayers: bool = False

    def __post_init__(self) -> None:
        require_choice("Magnitude.basis", self.basis, BASES)

    def between(self, num_layers: int) -> Collection[int]:
        """All layers, or none."""
        return range(num_layers) if self.sublayers else ()

    def of_sublayers(self) -> Statistic:
        """With what the MLPs read."""
        return replace(self, sublayers=True)

    def start(self, num_layers: int) -> Accumulator:
        """Keep sums of absolute values."""
        return _MagnitudeMean(self, num_layers)


class _MagnitudeMean:
    def __init__(self, spec: Magnitude, num_layers: int) -> None:
        self.basis = spec.basis
        self.rows = 2 if spec.sublayers else 1  # for each layer
        self.sums: list[Tensor | None] = [None] * (self.rows * num_layers + 1)
        self.count = 0

    def observe(self, stream: LayerInput) -> None:
        total = stream.in_basis(self.basis).abs().sum(dim=0).double()
        row = int(self.rows * stream.index)
        previous = self.sums[row]
        self.sums[row] = total if previous is None else previous + total
        self.count += len(stream.tokens) if stream.index == 0 else 0

    def result(self) -> dict[str, Tensor]:
        return {"magnitude": on_cpu(self.sums) / self.count}


def on_cpu(sums: Sequence[Tensor | None]) -> Tensor:
    """Sums that exist, stacked and copied once: each copy from a GPU waits for all that it has to do."""
    totals = [total for total in sums if total is not None]
    return torch.stack([total.to(totals[0].device) for total in totals]).cpu()


@dataclass(frozen=True)
class StreamPair(Statistic):
    """Base of statistics of two streams: before and past an interface.

    Attributes:
        start_layer: Reads the first (`i + ½`: the MLP of layer i).
        end_layer: Reads the second.
    """

    start_layer: float
    end_layer: float

    def deepest(self, num_layers: int) -> float:
        """Nothing is needed past the interface."""
        return self.end_layer

    def between(self, num_layers: int) -> Collection[int]:
        """Where the interface begins or ends between attention and MLP."""
        return inside(self.start_layer, self.end_layer)


class PairSums(ABC):
    """Sums over the tokens of two streams, of which the first is kept until the second has come."""

    def __init__(self, start_layer: float, end_layer: float) -> None:
        self.start_layer, self.end_layer = start_layer, end_layer
        self.before: LayerInput | None = None
        self.sums: dict[str, Tensor] = {}

    def observe(self, stream: LayerInput) -> None:
        """Add the pair where the second stream has come."""
        if stream.index == self.start_layer:
            self.before = stream
        elif stream.index == self.end_layer:
            assert self.before is not None
            self.observe_pair(self.before, stream)
            self.before = None

    @abstractmethod
    def observe_pair(self, before: LayerInput, after: LayerInput) -> None:
        """Add what both streams of a batch give."""

    def accumulate(self, **parts: Tensor) -> None:
        """Add to sums by name."""
        for name, part in parts.items():
            if name in self.sums:
                self.sums[name] += part
            else:
                self.sums[name] = part

    def accumulate_product(self, name: str, left: Tensor, right: Tensor) -> None:
        """Add `leftᵀ right` to a sum; the product itself, which is as large as the sum, is never made."""
        if name in self.sums:
            self.sums[name].addmm_(left.T, right)
        else:
            self.sums[name] = left.T @ right


@dataclass(frozen=True)
class MagnitudeRatio(StreamPair):
    """Mean over blocks of the ratio of mean absolute values after and before an interface.

    Result `ratio`: `[D]`, or `[1]` where `pooled` takes all channels together. What the official code
    computes in place of eq. 4's ratio of means.
    """

    basis: str = "channel"
    pooled: bool = False

    def __post_init__(self) -> None:
        require_choice("MagnitudeRatio.basis", self.basis, BASES)

    def start(self, num_layers: int) -> Accumulator:
        """Keep the sum of ratios."""
        return _RatioMean(self)


class _RatioMean:
    def __init__(self, spec: MagnitudeRatio) -> None:
        self.spec = spec
        self.before: Tensor | None = None
        self.total: Tensor | float = 0.0
        self.count = 0

    def observe(self, stream: LayerInput) -> None:
        if stream.index not in (self.spec.start_layer, self.spec.end_layer):
            return
        blocks = stream.hidden.shape[0]
        values = stream.in_basis(self.spec.basis).view(blocks, -1, stream.hidden.shape[-1])
        magnitude = values.abs().sum(dim=1, dtype=torch.float64)
        if self.spec.pooled:
            magnitude = magnitude.sum(dim=-1, keepdim=True)
        if stream.index == self.spec.start_layer:
            self.before = magnitude
        else:
            assert self.before is not None
            self.total = self.total + ratio(magnitude, self.before.to(magnitude.device)).sum(dim=0)
            self.count += blocks

    def result(self) -> dict[str, Tensor]:
        return {"ratio": (torch.as_tensor(self.total) / self.count).cpu()}
