"""The matrices by which a sublayer writes to the residual stream: one output projection, or those of experts.

The experts of a mixture have one each. The same map added to all of them adds that map of one vector: what they read,
each weighted by the router, summed. So a mixture has an output projection, too, as wide as an expert. Where there are
shared experts, which every token passes, it is theirs, and the routed ones stay as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder, unwrap
from linearpatch.models.offload import parameter_replaced, read_parameter, replace_parameter
from linearpatch.models.quantised import check_unquantised
from linearpatch.models.tracing import check_tokens

EXPERTS = "experts"  # what mixtures of experts call their routed experts …
DOWN = "down_proj"  # … and experts their output projections
ON_STREAM = "Use a patch on the stream, such as patch=lstsq."
# Of what a changed weight adds, relative to its largest entry: as far as it may be from what it was computed to add.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
HALF_TOLERANCE = 1e-1


@dataclass(frozen=True)
class Weight:
    """A parameter in which a sublayer's output is linear: the matrix of one projection, those of all experts, a bias.

    Attributes:
        module: Whose it is.
        name: Of the parameter.
        row_major: Whether it is `[…, inputs, outputs]`, as biases and GPT-2's and some experts' matrices are, or
            `[…, outputs, inputs]`, as those of `nn.Linear` and most experts.
    """

    module: nn.Module
    name: str
    row_major: bool

    @property
    def is_bias(self) -> bool:
        """Whether nothing is multiplied by it."""
        return self.name.endswith("bias")

    @property
    def width(self) -> int:
        """How many inputs a matrix has."""
        shape = self.module.get_parameter(self.name).shape
        return int(shape[-2] if self.row_major else shape[-1])

    def multiply(self, matrix: Tensor) -> None:
        """Make it write its outputs times a matrix, `[hidden_size, hidden_size]`."""
        weight = self._read()
        matrix = matrix.to(weight)
        replace_parameter(self.module, self.name, weight @ matrix if self.row_major else matrix.T @ weight)

    def divide(self, factor: float) -> None:
        """Make it write its outputs over a number."""
        replace_parameter(self.module, self.name, self._read() / factor)

    def add(self, change: Tensor) -> None:
        """Add `[inputs, outputs]` to the matrix, or to that of each expert."""
        replace_parameter(self.module, self.name, self.plus(change))

    def plus(self, change: Tensor) -> Tensor:
        """The matrix with `[inputs, outputs]` added, in fp64."""
        weight = self._read()
        change = change.to(weight)
        return weight + (change if self.row_major else change.T)

    def filled(self, matrix: Tensor) -> Tensor:
        """Another matrix, `[inputs, outputs]`, in its place; that of each expert."""
        old = self.module.get_parameter(self.name)
        matrix = (matrix if self.row_major else matrix.T).to(old.dtype)
        return matrix.expand(old.shape).contiguous()

    def _read(self) -> Tensor:
        return read_parameter(self.module, self.name).double()


class Projection(ABC):
    """What of a sublayer a map can be added to.

    Attributes:
        module: What writes to the stream.
        weights: The matrices that the map is added to.
    """

    module: nn.Module
    weights: Sequence[Weight]

    @property
    def width(self) -> int:
        """How many inputs it has."""
        return self.weights[0].width

    @property
    def is_routed(self) -> bool:
        """Whether a router decides which of the matrices a token passes."""
        return False

    @abstractmethod
    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What a map that is added to the matrices multiplies, `[…, width]`.

        Args:
            args: What the module is called with.
            kwargs: By name.
        """

    def add(self, change: Tensor) -> None:
        """Add a map, `[width, hidden_size]`, to each of the matrices."""
        for weight in self.weights:
            weight.add(change)


@dataclass(frozen=True)
class MatrixProjection(Projection):
    """One matrix, which is all that writes to the stream."""

    module: nn.Module

    @property
    def weights(self) -> Sequence[Weight]:  # type: ignore[override]
        """Its own."""
        return (Weight(self.module, "weight", isinstance(self.module, Conv1D)),)

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What it is called with."""
        inputs: Tensor = args[0]
        return inputs


@dataclass(frozen=True)
class ExpertProjection(Projection):
    """The matrices of shared experts, or of all routed ones.

    Attributes:
        module: The mixture of experts.
        weights: Matrices that the map is added to.
        biases: Of the same modules.
        hidden_size: Width of the stream.
    """

    module: nn.Module
    weights: Sequence[Weight]
    biases: Sequence[Weight]
    hidden_size: int

    @property
    def is_routed(self) -> bool:
        """Unless they are those of shared experts."""
        experts = set(self.module.get_submodule(EXPERTS).modules())
        return self.weights[0].module in experts

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What reaches the mixture's output of it: the mixture runs with columns of the identity as its matrices."""
        identity = torch.eye(self.width)
        parts = []
        for start in range(0, self.width, self.hidden_size):
            columns = identity[:, start : start + self.hidden_size]
            padded = nn.functional.pad(columns, (0, self.hidden_size - columns.shape[1]))
            parts.append(self._run(padded, args, kwargs)[..., : columns.shape[1]])
        return torch.cat(parts, dim=-1)

    def _run(self, matrix: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What the mixture writes with another matrix in place of each, without biases and other experts."""
        with ExitStack() as stack:
            for weight in (*self.weights, *self.biases):
                value = matrix if not weight.is_bias else matrix.new_zeros(self.hidden_size)
                value = weight.filled(value.to(read_parameter(weight.module, weight.name).device))
                stack.enter_context(parameter_replaced(weight.module, weight.name, value))
            if not self.is_routed:
                stack.enter_context(_silenced(self.module, EXPERTS))
            return unwrap(self.module.forward(*args, **kwargs))

    @torch.no_grad()
    def error(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        """How far a map that is added to the matrices is from adding that map of `inputs`, relative to that."""
        generator = torch.Generator().manual_seed(0)
        scale = max(float(read_parameter(weight.module, weight.name).float().std()) for weight in self.weights)
        change = scale * torch.randn(self.width, self.hidden_size, generator=generator)
        before = unwrap(self.module.forward(*args, **kwargs)).double()
        with ExitStack() as stack:
            for weight in self.weights:
                stack.enter_context(parameter_replaced(weight.module, weight.name, weight.plus(change)))
            changed = unwrap(self.module.forward(*args, **kwargs)).double()
        expected = self.inputs(args, kwargs).double() @ change.to(changed)
        return float((changed - before - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


class _Silent(nn.Module):
    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros_like(hidden)


@contextmanager
def _silenced(module: nn.Module, name: str) -> Iterator[None]:
    """While open, a child of a module writes zeros."""
    child = module.get_submodule(name)
    setattr(module, name, _Silent())
    try:
        yield
    finally:
        setattr(module, name, child)


def is_mixture(output: nn.Module) -> bool:
    """Whether what writes to the stream is a mixture of experts."""
    return hasattr(output, EXPERTS)


def expert_projection(output: nn.Module, hidden_size: int) -> ExpertProjection:
    """The output projection of a mixture of experts: that of its shared experts, if it has any, or of all others.

    Raises:
        ModelError: it keeps their weights in an unknown way.
    """
    check_changeable(output)
    experts = set(output.get_submodule(EXPERTS).modules())
    everything = output_weights(output, hidden_size)
    shared = [weight for weight in everything if weight.module not in experts]
    chosen = shared or everything
    matrices = tuple(weight for weight in chosen if not weight.is_bias)
    if len({weight.width for weight in matrices}) != 1:
        raise ModelError(
            f"The experts of {type(output).__name__} have output projections of different widths, so that no map can "
            f"be added to all of them. {ON_STREAM}"
        )
    return ExpertProjection(output, matrices, tuple(weight for weight in chosen if weight.is_bias), hidden_size)


def check_changeable(output: nn.Module) -> None:
    """Reject a quantised module for a patch that changes its weights.

    Raises:
        ModelError: names what works.
    """
    check_unquantised([output], "A patch that changes the output projection before an interface", ON_STREAM)


def output_weights(output: nn.Module, hidden_size: int) -> list[Weight]:
    """The parameters in which a sublayer's output is linear: weight and bias, or those of every expert.

    Raises:
        ModelError: a mixture of experts keeps its weights in an unknown way.
    """
    check_unquantised([output], "Changing what a sublayer writes", "Use save_format=custom or adapter.")
    if not is_mixture(output):
        own = (name for name, _ in output.named_parameters(recurse=False))
        return [Weight(output, name, _is_row_major(output, name, hidden_size)) for name in own]
    weights = [
        Weight(module, name, _is_row_major(module, name, hidden_size))
        for path, module in output.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if DOWN in f"{path}.{name}"
    ]
    if not any(not weight.is_bias for weight in weights):
        raise ModelError(
            f"{type(output).__name__} keeps its experts' weights in a way this version doesn't support: none is named "
            f"{DOWN}. {ON_STREAM}"
        )
    return weights


def check_experts(decoder: Decoder, projections: Sequence[ExpertProjection]) -> None:
    """Reject mixtures of experts that make more of their matrices' outputs than a weighted sum; a few tokens tell.

    Args:
        decoder: The model.
        projections: Of its mixtures; one of each class is looked at.

    Raises:
        ModelError: names the class.
    """
    if not projections:
        return
    of_classes = {type(projection.module): projection for projection in projections}
    errors: dict[type, float] = {}

    def before(projection: ExpertProjection) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            errors[type(module)] = projection.error(args, kwargs)

        return hook

    handles = [
        projection.module.register_forward_pre_hook(before(projection), with_kwargs=True)
        for projection in of_classes.values()
    ]
    try:
        with torch.no_grad():
            decoder.forward(check_tokens(decoder.model), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    allowed = TOLERANCE.get(decoder.model.dtype, HALF_TOLERANCE)
    for kind, error in errors.items():
        if not error <= allowed:
            raise ModelError(
                f"{kind.__name__} combines its experts' outputs in a way this version doesn't support: adding a map to "
                f"their output projections has another effect than computed (off by {error:.0%}). {ON_STREAM}"
            )


def _is_row_major(module: nn.Module, name: str, hidden_size: int) -> bool:
    """Whether a parameter's outputs are its last dimension."""
    if name.endswith("bias") or isinstance(module, Conv1D):
        return True
    shape = module.get_parameter(name).shape
    if len(shape) < 3:
        return False
    if shape[-1] != shape[-2]:
        return bool(shape[-1] == hidden_size)
    gates = getattr(module, "gate_up_proj", None)  # of experts as wide as the stream
    return bool(getattr(module, "is_transposed", False)) or (gates is not None and gates.shape[-2] == hidden_size)
