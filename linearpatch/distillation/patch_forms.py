"""Patches while they are trained: master copies in fp32, and which part of them may move.

Each turns a fitted operator P₀ into a matrix with parameters, and back into an ordinary operator when
training is over. The matrix is cast to the stream's dtype at every use, so bf16 and fp16 models get updates
that are too small for their own dtype.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from linearpatch.errors import ConfigError
from linearpatch.linalg.hadamard import hadamard_matrix
from linearpatch.models.edit import Edit
from linearpatch.models.modeling_linearpatch import ChannelScale, LinearMap, Operator


class TrainablePatch(nn.Module, ABC):
    """A patch made of parameters in fp32."""

    @abstractmethod
    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[…, hidden_size]`, in the stream's dtype and where it is."""

    @abstractmethod
    def operator(self) -> Operator:
        """The patch as it is now, as an operator of its own."""


class MatrixPatch(TrainablePatch):
    """x ↦ x P + b with P and b made of parameters, fp32 `[hidden_size, hidden_size]` and `[hidden_size]`."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """P, for row vectors."""

    @abstractmethod
    def bias(self) -> Tensor | None:
        """b, where there is one."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[…, hidden_size]`, in the stream's dtype and where it is."""
        bias = self.bias()
        return functional.linear(hidden, self.matrix().T.to(hidden), None if bias is None else bias.to(hidden))

    @torch.no_grad()
    def operator(self) -> Operator:
        """The patch as it is now, as an operator of its own."""
        bias = self.bias()
        return LinearMap(self.matrix().detach().clone(), None if bias is None else bias.detach().clone())


class FullPatch(MatrixPatch):
    """Every entry moves: P = A + W, with W trained and A fixed.

    Args:
        matrix: P₀.
        bias: b₀, trained as well.
        around_start: A is P₀ and W begins at zero, so that weight decay pulls to P₀; else A is zero.
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None, *, around_start: bool) -> None:
        super().__init__()
        start = {"matrix": matrix} if bias is None else {"matrix": matrix, "bias": bias}
        self.around_start = around_start
        self.moved = nn.ParameterDict()
        for name, values in start.items():
            self.register_buffer(f"start_{name}", values if around_start else None)
            self.moved[name] = torch.zeros_like(values) if around_start else values.clone()

    def matrix(self) -> Tensor:
        """A + W."""
        return self._value("matrix")

    def bias(self) -> Tensor | None:
        """The same for b."""
        return self._value("bias") if "bias" in self.moved else None

    def _value(self, name: str) -> Tensor:
        moved: Tensor = self.moved[name]
        return self.get_buffer(f"start_{name}") + moved if self.around_start else moved


class OperatorPatch(TrainablePatch):
    """An operator of any kind whose parameters move, all of them.

    Args:
        fitted: The operator it begins as.
        around_start: What moves begins at zero and is added to the fitted parameters, as in `FullPatch`.
    """

    def __init__(self, fitted: Operator, *, around_start: bool) -> None:
        super().__init__()
        self.around_start = around_start
        self._shape = (fitted,)  # in a tuple, so that its parameters aren't this module's
        start = [parameter.detach().float() for parameter in fitted.parameters()]
        self.moved = nn.ParameterList([torch.zeros_like(v) if around_start else v.clone() for v in start])
        for index, values in enumerate(start):
            self.register_buffer(f"start_{index}", values if around_start else None)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[…, hidden_size]`, in the stream's dtype and where it is."""
        values = {name: value.to(hidden) for name, value in self._values().items()}
        patched: Tensor = functional_call(self._shape[0], values, (hidden,))
        return patched

    @torch.no_grad()
    def operator(self) -> Operator:
        """The operator as it is now."""
        operator = copy.deepcopy(self._shape[0]).float()
        operator.load_state_dict(self._values())
        return operator

    def _values(self) -> dict[str, Tensor]:
        names = [name for name, _ in self._shape[0].named_parameters()]
        moved = enumerate(self.moved)
        values = [self.get_buffer(f"start_{at}") + value if self.around_start else value for at, value in moved]
        return dict(zip(names, values, strict=True))


class DiagonalPatch(MatrixPatch):
    """Only a scale in some basis moves: P = P₀ B diag(s) Bᵀ, with s beginning at one.

    With B the Hadamard matrix and P₀ the paper's patch H diag(d) Hᵀ this trains d; with B = I a `diag` patch's.

    Args:
        matrix: P₀.
        bias: b₀.
        basis: `hadamard` or `channel`.
        around_start: Weight decay pulls s to one; else to zero.
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None, basis: str, *, around_start: bool) -> None:
        super().__init__()
        size = len(matrix)
        turn = hadamard_matrix(size).to(matrix.device) if basis == "hadamard" else None
        self.register_buffer("turn", None if turn is None else turn.float())
        self.register_buffer("turned", matrix if turn is None else (matrix.double() @ turn).float())
        self.register_buffer("turned_bias", bias if bias is None or turn is None else (bias.double() @ turn).float())
        self.offset = 1.0 if around_start else 0.0
        self.scale = nn.Parameter(torch.full((size,), 1.0 - self.offset, device=matrix.device))

    def matrix(self) -> Tensor:
        """P₀ B diag(s) Bᵀ."""
        return self._scaled(self.get_buffer("turned"))

    def bias(self) -> Tensor | None:
        """b₀ B diag(s) Bᵀ."""
        return None if self.turned_bias is None else self._scaled(self.get_buffer("turned_bias"))

    def _scaled(self, turned: Tensor) -> Tensor:
        scaled = turned * (self.offset + self.scale)
        return scaled if self.turn is None else scaled @ self.get_buffer("turn").T

    @torch.no_grad()
    def operator(self) -> Operator:
        """A scale for each channel stays one; anything else is a map."""
        matrix = self.matrix()
        if self.turn is None and self.turned_bias is None and torch.equal(matrix, matrix.diagonal().diag()):
            return ChannelScale(matrix.diagonal().clone())
        return super().operator()


class LowRankPatch(MatrixPatch):
    """P = P₀ + U V with U `[hidden_size, rank]` random and V zero at the beginning; P₀ and b₀ stay.

    Args:
        matrix: P₀.
        bias: b₀.
        rank: Of what is added.
        seed: Of U.
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None, rank: int, seed: int) -> None:
        super().__init__()
        size = len(matrix)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("start_matrix", matrix)
        self.register_buffer("start_bias", bias)
        self.up = nn.Parameter((torch.randn(size, rank, generator=generator) / size**0.5).to(matrix.device))
        self.down = nn.Parameter(torch.zeros(rank, size, device=matrix.device))

    def matrix(self) -> Tensor:
        """P₀ + U V."""
        return torch.addmm(self.get_buffer("start_matrix"), self.up, self.down)

    def bias(self) -> Tensor | None:
        """b₀."""
        return None if self.start_bias is None else self.get_buffer("start_bias")


def at_rest(edit: Edit) -> Edit:
    """A student's edit as it is now, with operators and weights of its own that don't train."""
    modules = [placed.module for placed in edit.operators]
    operators = [module.operator() if isinstance(module, TrainablePatch) else module for module in modules]
    weights = {name: change.trained() for name, change in edit.weights.items()}
    return edit.with_modules(operators).with_weights(weights)


def dense_form(operator: nn.Module, size: int) -> tuple[Tensor, Tensor | None]:
    """P for row vectors and b of an operator, in fp32.

    Args:
        operator: A fitted `ChannelScale` or `LinearMap`.
        size: Of the stream.

    Raises:
        ConfigError: it is another operator, which isn't known to be linear.
    """
    if isinstance(operator, ChannelScale):
        return operator.scale.detach().float().expand(size).diag(), None
    if isinstance(operator, LinearMap):
        bias = operator.bias
        return operator.weight.detach().float().T.contiguous(), None if bias is None else bias.detach().float().clone()
    raise ConfigError(
        f"A {type(operator).__name__} isn't one matrix, of which a part could be trained. Use distill.patch_form=full."
    )
