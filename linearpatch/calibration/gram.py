"""Sums of products of two streams, from which least-squares maps between them follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from linearpatch.calibration.statistics import Accumulator, LayerInput, Statistic
from linearpatch.models.modeling_linearpatch import EPSILON


@dataclass(frozen=True)
class Gram(Statistic):
    """Sums of products from which a least-squares map between two streams follows.

    With rows x of stream `start_layer`, followed by a 1 where `bias` is set, rows y of stream `end_layer`,
    and weights w (1, or 1/‖y‖² where `relative`), results in fp64:

    `xx`: Σ w xᵀx, `[D(+1), D(+1)]` · `xy`: Σ w xᵀy, `[D(+1), D]` · `yy`: Σ w ‖y‖², scalar ·
    `energy`: Σ w ‖stream end_layer‖² · `count`: number of tokens · `bias`: 1 or 0.

    Where `normalised` is set, rows x are those of the stream over their root mean square, and rows y what the
    gap adds to the stream.
    """

    start_layer: int
    end_layer: int
    bias: bool = False
    relative: bool = False
    normalised: bool = False

    def deepest(self, num_layers: int) -> int:
        """Nothing is needed past the gap."""
        return self.end_layer

    def start(self, num_layers: int) -> Accumulator:
        """Keep the sums of products."""
        return _GramSums(self)


class _GramSums:
    def __init__(self, spec: Gram) -> None:
        self.spec = spec
        self.before: Tensor | None = None
        self.sums: dict[str, Tensor] = {}
        self.energy: Tensor | float = 0.0
        self.count = 0

    def observe(self, stream: LayerInput) -> None:
        if stream.index == self.spec.start_layer:
            self.before = stream.tokens
        elif stream.index == self.spec.end_layer:
            assert self.before is not None
            x, y = self.before.to(stream.tokens.device).double(), stream.tokens.double()
            energy = y.square().sum(dim=-1, keepdim=True)
            if self.spec.normalised:
                x, y = x * (x.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt(), y - x
            if self.spec.bias:
                x = functional.pad(x, (0, 1), value=1.0)
            self.add(x, y, 1 / energy if self.spec.relative else None)
            self.energy = self.energy + (float(len(y)) if self.spec.relative else energy.sum())
            self.before = None

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
        """Add rows x with targets y, each row weighted."""
        weighted = x if weight is None else x * weight
        energy = y.square() if weight is None else y.square() * weight
        products = {"xx": weighted.T @ x, "xy": weighted.T @ y, "yy": energy.sum()}
        for name, product in products.items():
            self.sums[name] = self.sums[name] + product if name in self.sums else product
        self.count += len(y)

    def result(self) -> dict[str, Tensor]:
        sums: Mapping[str, Tensor] = {name: total.cpu() for name, total in self.sums.items()}
        energy = torch.as_tensor(self.energy, dtype=torch.float64).cpu()
        facts = {"count": float(self.count), "bias": float(self.spec.bias)}
        return {**sums, "energy": energy, **{name: torch.tensor(fact).double() for name, fact in facts.items()}}


@dataclass(frozen=True)
class MlpGram(Statistic):
    """Sums of products from which a map of one MLP's output follows that makes up for a gap.

    Layer `start_layer − 1` reads x, its MLP adds m. A map A of m alone gives x_start − m + m A; for that to
    be stream `end_layer`, m A must be t = x_end − x_start + m. With rows m and t and weights w (1, or
    1/‖x_end‖² where `relative`), results in fp64:

    `xx`: Σ w mᵀm · `xy`: Σ w mᵀt · `yy`: Σ w ‖t‖² · `energy`: Σ w ‖x_end‖² · `count`: number of tokens · `bias`: 0.
    """

    start_layer: int
    end_layer: int
    relative: bool = False

    def deepest(self, num_layers: int) -> int:
        """Nothing is needed past the gap."""
        return self.end_layer

    def mlp_layers(self) -> tuple[int, ...]:
        """The last layer before the gap."""
        return (self.start_layer - 1,)

    def start(self, num_layers: int) -> Accumulator:
        """Keep the sums of products."""
        return _MlpGramSums(self)


class _MlpGramSums:
    def __init__(self, spec: MlpGram) -> None:
        self.spec = spec
        self.before: LayerInput | None = None
        self.sums = _GramSums(Gram(spec.start_layer, spec.end_layer))

    def observe(self, stream: LayerInput) -> None:
        if stream.index == self.spec.start_layer:
            self.before = stream
        elif stream.index == self.spec.end_layer:
            assert self.before is not None
            assert self.before.mlp_output is not None
            after = stream.tokens.double()
            added = self.before.mlp_output.reshape(-1, after.shape[-1]).to(after).double()
            energy = after.square().sum(dim=-1, keepdim=True)
            weight = 1 / energy if self.spec.relative else None
            self.sums.add(added, after - self.before.tokens.to(after) + added, weight)
            self.sums.energy = self.sums.energy + (float(len(after)) if self.spec.relative else energy.sum())
            self.before = None

    def result(self) -> dict[str, Tensor]:
        return self.sums.result()


@dataclass(frozen=True)
class RefitGram(Statistic):
    """Sums of products from which a stream past a gap follows by the stream before it and by what made that.

    With rows x of stream `start_layer`, rows h of what the last product of the MLP of layer `start_layer − 1`
    reads, rows [x, h, 1], rows y of stream `end_layer`, and weights w (1, or 1/‖y‖² where `relative`), results in fp64:

    `xx`: Σ w [x, h, 1]ᵀ[x, h, 1], `[D + H + 1, D + H + 1]` · `xy`: Σ w [x, h, 1]ᵀy, `[D + H + 1, D]` ·
    `yy` and `energy`: Σ w ‖y‖² · `count`: number of tokens · `bias`: 1.
    """

    start_layer: int
    end_layer: int
    relative: bool = False

    def deepest(self, num_layers: int) -> int:
        """Nothing is needed past the gap."""
        return self.end_layer

    def mlp_products(self) -> tuple[int, ...]:
        """The last layer before the gap."""
        return (self.start_layer - 1,)

    def start(self, num_layers: int) -> Accumulator:
        """Keep the sums of products."""
        return _RefitGramSums(self)


class _RefitGramSums:
    def __init__(self, spec: RefitGram) -> None:
        self.spec = spec
        self.before: LayerInput | None = None
        self.sums = _GramSums(Gram(spec.start_layer, spec.end_layer, bias=True))

    def observe(self, stream: LayerInput) -> None:
        if stream.index == self.spec.start_layer:
            self.before = stream
        elif stream.index == self.spec.end_layer:
            assert self.before is not None
            assert self.before.mlp_input is not None
            y = stream.tokens.double()
            x = self.before.tokens.to(y)
            h = self.before.mlp_input.reshape(len(x), -1).to(y)
            energy = y.square().sum(dim=-1, keepdim=True)
            rows = functional.pad(torch.cat([x, h], dim=-1), (0, 1), value=1.0)
            self.sums.add(rows, y, 1 / energy if self.spec.relative else None)
            self.sums.energy = self.sums.energy + (float(len(y)) if self.spec.relative else energy.sum())
            self.before = None

    def result(self) -> dict[str, Tensor]:
        return self.sums.result()
