"""A layer as updates of the residual stream: its attention and its MLP, found by watching one forward pass.

A layer adds a multiple of the outputs of two modules to what it reads. Families name these modules differently, and
put norms, dropouts or mixtures of experts around them; the sum says which they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder, split_call, unwrap
from linearpatch.models.tracing import check_tokens

MATRICES = (nn.Linear, Conv1D)
ATTENTION, MLP = "attention", "mlp"
NAMES = {ATTENTION: "attention", MLP: "MLP"}  # in sentences

# Where a layer keeps what was found, so that its copies in views needn't be traced again.
_MEMORY = "_linearpatch_sublayers"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the sum, relative to what the layer adds …
HALF_TOLERANCE = 5e-2  # … in half precision, where the stream is rounded once more
NEAR = 0.1  # of what an attention adds, by which a stream may differ from that before or after it


@dataclass(frozen=True)
class Sublayer:
    """The attention or the MLP of a layer: it reads the residual stream and adds to it.

    Attributes:
        output: The module whose output is added.
        multiplier: What that is multiplied by first (Granite's `residual_multiplier`).
    """

    output: nn.Module
    multiplier: float = 1.0

    @property
    def projection(self) -> nn.Module | None:
        """The output projection, where the output is that of one matrix; None for a norm or a mixture of experts."""
        matrix = getattr(self.output, "base_layer", self.output)  # which peft's LoRA layers stand around
        return self.output if isinstance(matrix, MATRICES) else None

    @property
    def is_norm(self) -> bool:
        """Whether a norm of its own stands between the sublayer and the stream (Gemma 2 and 3)."""
        parameters = list(self.output.parameters())
        return bool(parameters) and all(parameter.dim() == 1 for parameter in parameters)


@dataclass(frozen=True)
class Roles:
    """The modules of one sublayer, by their names in the layer.

    Attributes:
        output: The module whose output is added to the stream.
        reader: The child of the layer that reads the stream for it; None: no module reads the stream as it is there,
            as where attention and MLP share what they read.
        children: The children of the layer that run for this sublayer alone, in order, with the entries of the tuple
            that each returns (0: a tensor). Empty where it can't be separated from the rest of the layer.
    """

    output: str
    reader: str | None = None
    children: Mapping[str, int] = field(default_factory=dict)

    @property
    def adding(self) -> str:
        """The child whose output is added."""
        return self.output.partition(".")[0]


@dataclass(frozen=True)
class _Traced:
    """What was found of a layer: its sublayers by part, and what their outputs are multiplied by."""

    roles: Mapping[str, Roles]
    multiplier: float = 1.0


@dataclass(frozen=True)
class Sublayers:
    """The two sublayers of a layer, in the order in which they run."""

    layer: nn.Module
    traced: _Traced

    @property
    def attention(self) -> Sublayer:
        """What mixes tokens: attention, or what a hybrid has in its place."""
        return self[ATTENTION]

    @property
    def mlp(self) -> Sublayer:
        """What treats each token by itself."""
        return self[MLP]

    def __getitem__(self, part: str) -> Sublayer:
        return Sublayer(self.layer.get_submodule(self.roles(part).output), self.traced.multiplier)

    def roles(self, part: str) -> Roles:
        """Names of the modules of a sublayer.

        Raises:
            ModelError: it was removed.
        """
        if part not in self.traced.roles:
            raise ModelError(f"This {type(self.layer).__name__} has no {NAMES[part]} any more: no patch can act there.")
        return self.traced.roles[part]


def sublayers_of(decoder: Decoder, index: int) -> Sublayers:
    """The sublayers of a layer; the first call for a model runs a few tokens through it.

    Raises:
        ModelError: the layer doesn't add the outputs of two of its modules to the stream.
    """
    layer = decoder.layers[index]
    if _MEMORY not in layer.__dict__:
        _trace(decoder)
    traced: _Traced | None = layer.__dict__[_MEMORY]
    if traced is None:
        raise ModelError(
            f"{type(layer).__name__} adds to the stream in a way this version doesn't support (its parts: "
            f"{', '.join(name for name, _ in layer.named_children())}), so nothing can be folded into its weights or "
            "fitted there. Use a patch on the stream, such as patch=lstsq, and save_format=custom or adapter for it."
        )
    return Sublayers(layer, traced)


def check_separable(decoder: Decoder, index: int, part: str) -> Roles:
    """The modules of a sublayer that can be removed without the rest of its layer.

    Args:
        decoder: The dense model.
        index: Of the layer.
        part: `attention` or `mlp`.

    Raises:
        ModelError: says why the family's sublayers can't be separated.
    """
    layer = decoder.layers[index]
    kind = type(layer).__name__
    whole = "Remove whole layers (pruner.unit=layer), or choose a sequential family such as Llama, Qwen or Gemma."
    try:
        sublayers = sublayers_of(decoder, index)
    except ModelError as error:
        raise ModelError(
            f"{kind} isn't an attention and an MLP that each add to the stream (its parts: "
            f"{', '.join(name for name, _ in layer.named_children())}), so that its {NAMES[part]} can't be removed "
            f"alone. {whole}"
        ) from error
    roles = sublayers.roles(part)
    if sublayers.roles(MLP).reader is None:
        raise ModelError(
            f"{kind} has parallel residuals: its MLP doesn't read what its attention adds, both make one update of the "
            f"stream. Its {NAMES[part]} can't be removed alone. {whole}"
        )
    if not roles.children:
        raise ModelError(
            f"The {NAMES[part]} of {kind} adds to the stream inside its own module ({roles.adding}), so that it can't "
            f"be removed alone. {whole}"
        )
    return roles


def mlp_reader(decoder: Decoder, index: int) -> nn.Module:
    """The module that reads what a layer's attention leaves of the stream.

    Raises:
        ModelError: the family's sublayers can't be separated.
    """
    roles = check_separable(decoder, index, MLP)
    assert roles.reader is not None
    return decoder.layers[index].get_submodule(roles.reader)


def forget_sublayer(layer: nn.Module, part: str) -> None:
    """Note on a layer of a view that one of its sublayers has been removed."""
    traced: _Traced = layer.__dict__[_MEMORY]
    layer.__dict__[_MEMORY] = replace(
        traced, roles={name: roles for name, roles in traced.roles.items() if name != part}
    )


def remember_sublayers(decoder: Decoder) -> None:
    """Find the sublayers of all layers, so that copies of a layer know theirs without the model around them."""
    if any(_MEMORY not in layer.__dict__ for layer in decoder.layers):
        _trace(decoder)


@torch.no_grad()
def _trace(decoder: Decoder) -> None:
    """Find the sublayers of all layers, and remember them there."""
    known = (1.0, decoder.residual_multiplier)

    def remember(layer: nn.Module, passed: _Pass) -> None:
        names, multiplier = _decompose(passed.read, passed.written, passed.outputs, known)
        layer.__dict__[_MEMORY] = None if names is None else _traced(passed, names, multiplier)

    with _watching(decoder.layers, remember):
        decoder.hidden_states(decoder.forward(check_tokens(decoder.model), use_cache=False))


@dataclass
class _Child:
    """What a child of a layer read and wrote in one call; None: no tensor of the stream's size."""

    name: str
    read: Tensor | None
    wrote: Tensor | None = None
    entries: int = 0


@dataclass
class _Pass:
    """One layer's part of a forward pass: what it reads and writes, and its modules, in the order they ended."""

    read: Tensor
    written: Tensor
    outputs: list[tuple[str, bool, Tensor]] = field(default_factory=list)
    children: list[_Child] = field(default_factory=list)  # in the order they began


def _traced(passed: _Pass, names: tuple[str, str], multiplier: float) -> _Traced:
    """Which children of a layer belong to which sublayer: those of the MLP run from the one on that reads between."""
    attention, mlp = names
    outputs = {name: output for name, _, output in passed.outputs}
    children = passed.children
    between = passed.read + multiplier * outputs[attention].view_as(passed.read).to(passed.read)
    reads = [at for at, child in enumerate(children) if _is_nearly(child.read, between, passed.read)]
    reader = next((children[at].name for at in reads), None)
    first = next((child.name for child in children if _is_nearly(child.read, passed.read, between)), None)
    if reader is None or first is None:
        return _Traced({ATTENTION: Roles(attention, first), MLP: Roles(mlp)}, multiplier)
    groups = {ATTENTION: children[: reads[0]], MLP: children[reads[0] :]}
    roles = {}
    for part, output, start in ((ATTENTION, attention, first), (MLP, mlp, reader)):
        own, others = (
            [child.name for child in groups[name]] for name in (part, MLP if part == ATTENTION else ATTENTION)
        )
        found = Roles(output, start)
        adding = [child for child in groups[part] if child.name == found.adding]
        is_separate = len(adding) == 1 and _same(adding[0].wrote, outputs[output]) and not set(own) & set(others)
        if is_separate and len(set(own)) == len(own):
            found = replace(found, children={child.name: child.entries for child in groups[part]})
        roles[part] = found
    return _Traced(roles, multiplier)


def _is_nearly(tensor: Tensor | None, stream: Tensor, other: Tensor) -> bool:
    """Whether a tensor is a stream and not another one, which may differ from it by less than massive tokens vary."""
    if tensor is None or tensor.numel() != stream.numel():
        return False
    apart = (tensor.to(stream.device).double().flatten() - stream.double().flatten()).norm()
    return bool(apart <= NEAR * (stream.double() - other.double()).norm())


def _same(tensor: Tensor | None, other: Tensor) -> bool:
    """Whether two tensors hold the same stream up to rounding, however many dimensions they have."""
    if tensor is None or tensor.numel() != other.numel():
        return False
    one, two = (value.to(other.device).double().flatten() for value in (tensor, other))
    return bool((one - two).norm() <= TOLERANCE.get(other.dtype, 1e-2) * two.norm())


@contextmanager
def _watching(layers: nn.ModuleList, visit: Callable[[nn.Module, _Pass], None]) -> Iterator[None]:
    """While open, show what each layer and its modules read and write, as soon as it has run."""
    seen: list[_Pass] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = split_call(args, kwargs)[0].clone()
        seen[:] = [_Pass(read, read)]

    def within(name: str) -> Any:
        def after(module: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            value = output[0] if isinstance(output, tuple) and output else output
            if isinstance(value, Tensor) and value.numel() == seen[-1].read.numel():
                seen[-1].outputs.append(
                    (name, isinstance(module, MATRICES), value.clone())
                )  # Falcon adds one output to the other in place

        return after

    def child_begins(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            read = kwargs.get("hidden_states", read) if not args else read
            seen[-1].children.append(_Child(name, None if read is None else read.clone()))

        return hook

    def child_ends(name: str) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            child = next(child for child in reversed(seen[-1].children) if child.name == name)
            value = output[0] if isinstance(output, tuple) and output else output
            child.entries = len(output) if isinstance(output, tuple) else 0
            child.wrote = value.clone() if isinstance(value, Tensor) else None

        return hook

    def after(layer: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        seen[-1].written = unwrap(output)
        visit(layer, seen[-1])

    handles = []
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles += [module.register_forward_hook(within(name)) for name, module in layer.named_modules() if name]
        for name, child in layer.named_children():
            handles.append(child.register_forward_pre_hook(child_begins(name), with_kwargs=True))
            handles.append(child.register_forward_hook(child_ends(name)))
        handles.append(layer.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _decompose(
    read: Tensor, written: Tensor, outputs: Sequence[tuple[str, bool, Tensor]], known: Sequence[float]
) -> tuple[tuple[str, str] | None, float]:
    """Names of the two modules whose outputs are added, and what their sum is multiplied by; None: there are none."""
    added = (written.double() - read.to(written.device).double()).flatten(0, -2)
    tolerance = TOLERANCE.get(written.dtype, HALF_TOLERANCE)
    distinct: list[tuple[str, bool, Tensor]] = []
    for name, is_matrix, output in outputs:
        rows = output.to(added.device).double().reshape(added.shape)
        same = next((i for i, (*_, other) in enumerate(distinct) if torch.equal(rows, other)), None)
        if same is None:
            distinct.append((name, is_matrix, rows))
        elif not distinct[same][1]:  # the matrix itself, without the dropout after it; else the outermost module
            distinct[same] = (name, is_matrix, rows)
    # Where a token is massive, rounding the stream is more than what the layer adds to it: it counts for less.
    rounding = torch.finfo(written.dtype).eps * read.to(added.device).double().reshape(added.shape).norm(dim=-1)
    weights = 1 / (rounding.square() + (tolerance * added.norm(dim=-1)).square())
    best, best_terms, multiplier = 1.0, None, 1.0
    for (first, _, one), (second, _, other) in combinations(distinct, 2):
        factor, error = _factor(added, one + other, weights, known)
        if error < best:
            best, best_terms, multiplier = error, (first, second), factor
    return best_terms, multiplier


def _factor(added: Tensor, total: Tensor, weights: Tensor, known: Sequence[float]) -> tuple[float, float]:
    """What a sum is multiplied by, and how far that is from what was added, as a part of what is allowed.

    One of the known factors where that is near enough: rounding can hide a few per cent. Else that of least squares.
    """
    products = [(weights * (total * one).sum(dim=-1)).sum() for one in (added, total)]
    errors = {
        factor: (weights * (added - factor * total).square().sum(dim=-1)).mean().sqrt().item()
        for factor in (*known, (products[0] / products[1]).item())
    }
    factor = min(known, key=lambda value: errors[value])
    factor = factor if errors[factor] < 1 else min(errors, key=lambda value: errors[value])
    return factor, errors[factor]
