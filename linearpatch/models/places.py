"""Where an operator acts: on the residual stream, on a sublayer's output, or inside its output projection.

A place knows all that follows from where it is: how its operator becomes a part of a view, how it acts while a layer
of the dense model runs, and how it is folded into weights. Nothing outside this file asks which place it has.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder
from linearpatch.models.modeling_linearpatch import (
    ChannelScale,
    ChannelShift,
    FeatureMap,
    GatedMlp,
    LinearMap,
    Operator,
    attach,
)
from linearpatch.models.offload import read_parameter, replace_parameter
from linearpatch.models.projections import (
    MatrixProjection,
    Projection,
    check_changeable,
    expert_projection,
    is_mixture,
    output_weights,
)
from linearpatch.models.shapes import check_maps_stream, check_same_shape
from linearpatch.models.sublayers import ATTENTION, MLP, Sublayer, sublayers_of

PLACES: dict[str, type[Place]] = {}


@dataclass(frozen=True)
class Place(ABC):
    """Where an operator acts, in terms of the dense model's layers."""

    kind: ClassVar[str]  # its name in specs
    adds_parameters: ClassVar[bool] = True  # whether a view has the operator's parameters beside its own

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "kind" in cls.__dict__:
            PLACES[cls.kind] = cls

    def spec(self) -> dict[str, Any]:
        """Plain values for configurations and manifests; `place_from` reads them."""
        return {"kind": self.kind, **asdict(self)}

    @property
    @abstractmethod
    def first_layer(self) -> int:
        """The first dense layer that runs otherwise than in the dense model."""

    @abstractmethod
    def runs_with(self, removed: Collection[int]) -> int:
        """The dense index of the layer that the operator runs with; the number of layers for the final norm."""

    def expert_layer(self, decoder: Decoder) -> int | None:
        """The layer whose routed experts' weights change; None: those of none."""
        return None

    def on_input(self, operator: nn.Module, hidden: Tensor) -> Tensor:
        """What the layer that it runs with reads, `[…, hidden_size]`."""
        return hidden

    def attached(self, decoder: Decoder, operator: nn.Module) -> Any:
        """A context in which the operator acts on what a layer of the dense model writes."""
        return nullcontext()

    def check(self, dense: Decoder, operator: nn.Module) -> None:
        """Reject an operator that was made for a model of another shape.

        Raises:
            ModelError: it doesn't fit.
        """
        check_maps_stream(dense, operator)

    @abstractmethod
    def add_to(self, view: Decoder, kept: Sequence[int], operator: nn.Module) -> dict[str, Any] | None:
        """Make the operator a part of a view.

        Args:
            view: The dense model without some layers.
            kept: Dense indices of its layers.
            operator: What acts there; the view gets a copy.

        Returns:
            Its entry in the configuration of the view; None where its weights hold it.
        """

    def can_fold(self, operator: nn.Module) -> bool:
        """Whether stock weights may hold what an operator does here, going by its form."""
        return False

    def can_be_layer(self, operator: nn.Module) -> bool:
        """Whether a layer of its own may stand for what an operator does here."""
        return False

    def fold(self, view: Decoder, kept: Sequence[int], operator: nn.Module) -> None:
        """Change weights of a view so that they do what the operator does.

        Raises:
            ModelError: they can't.
        """
        kind = type(operator).__name__
        raise ModelError(f"A {kind} can't be folded into weights. Use save_format=custom or adapter.")

    def idle(self, operator: Operator) -> Operator:
        """An operator of the same form that does nothing here."""
        return type(operator).from_spec(**operator.spec())


def place_from(spec: Mapping[str, Any]) -> Place:
    """The place that plain values describe.

    Raises:
        ValueError: there is no such place.
    """
    values = dict(spec)
    kind = values.pop("kind", None)
    if kind not in PLACES:
        raise ValueError(f"place {kind!r}; known: {', '.join(sorted(PLACES))}")
    return PLACES[kind](**values)


@dataclass(frozen=True)
class OnStream(Place):
    """On what a layer reads of the residual stream.

    Attributes:
        reader: Dense index of the layer; the number of layers for the final norm. Where it is removed as well, the
            next layer reads what the operator wrote.
    """

    kind = "stream"

    reader: int

    @property
    def first_layer(self) -> int:
        """The reader."""
        return self.reader

    def runs_with(self, removed: Collection[int]) -> int:
        """The first layer from the reader on that is kept."""
        layer = self.reader
        while layer in removed:
            layer += 1
        return layer

    def on_input(self, operator: nn.Module, hidden: Tensor) -> Tensor:
        """Apply the operator, where its parameters are: with layers on several devices, the stream comes to them."""
        return operator(hidden.to(next(operator.parameters()).device))  # type: ignore[no-any-return]

    def add_to(self, view: Decoder, kept: Sequence[int], operator: nn.Module) -> dict[str, Any]:
        """Attach it to the input of its reader."""
        position = sum(layer < self.reader for layer in kept)
        return _attach(view, view.reader(position), operator, "input")

    def can_be_layer(self, operator: nn.Module) -> bool:
        """One that adds what it makes of the normalised stream, as layers do, or the same to every token."""
        return isinstance(operator, GatedMlp | ChannelShift) or (isinstance(operator, FeatureMap) and operator.is_layer)

    def can_fold(self, operator: nn.Module) -> bool:
        """One factor for all channels: the norms past it forget the scale of the stream."""
        return isinstance(operator, ChannelScale) and operator.scale.numel() == 1

    @torch.no_grad()
    def fold(self, view: Decoder, kept: Sequence[int], operator: nn.Module) -> None:
        """Make the layers past it add 1/α of what they added."""
        assert isinstance(operator, ChannelScale)
        alpha = operator.scale.item()
        if alpha <= 0:
            raise ModelError(
                f"The scale before layer {self.reader} is {alpha:.4g}. Only a positive one can be folded: norms "
                "cancel the scale of their input, not its sign. Use save_format=custom or adapter."
            )
        for position in range(sum(layer < self.reader for layer in kept), len(kept)):
            sublayers = sublayers_of(view, position)
            for sublayer in (sublayers.attention, sublayers.mlp):
                _divide(sublayer, alpha, view.hidden_size)


@dataclass(frozen=True)
class AtLayer(Place):
    """At a part of one layer.

    Attributes:
        layer: Dense index.
    """

    layer: int

    @property
    def first_layer(self) -> int:
        """The layer."""
        return self.layer

    def runs_with(self, removed: Collection[int]) -> int:
        """The layer."""
        return self.layer


@dataclass(frozen=True)
class AtOutput(AtLayer):
    """Base of the places on what a module of a layer writes."""

    @staticmethod
    @abstractmethod
    def output_of(decoder: Decoder, index: int) -> nn.Module:
        """The module of a layer.

        Raises:
            ModelError: the family has none, or nothing can act on its output.
        """

    @contextmanager
    def attached(self, decoder: Decoder, operator: nn.Module) -> Iterator[None]:
        """While open, the output passes through the operator."""

        def after_forward(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            return (operator(output[0]), *output[1:]) if isinstance(output, tuple) else operator(output)

        with _hooked(self.output_of(decoder, self.layer), after_forward):
            yield

    def add_to(self, view: Decoder, kept: Sequence[int], operator: nn.Module) -> dict[str, Any]:
        """Attach it to the output."""
        return _attach(view, self.output_of(view, kept.index(self.layer)), operator, "output")


@dataclass(frozen=True)
class OnOutput(AtOutput):
    """On what the MLP of a layer adds to the residual stream."""

    kind = "mlp_output"

    def expert_layer(self, decoder: Decoder) -> int | None:
        """Its layer, where that has experts: it may be folded into their weights."""
        return self.layer if is_mixture(self.output_of(decoder, self.layer)) else None

    def can_fold(self, operator: nn.Module) -> bool:
        """A matrix without a bias."""
        return isinstance(operator, LinearMap) and operator.bias is None

    @torch.no_grad()
    def fold(self, view: Decoder, kept: Sequence[int], operator: nn.Module) -> None:
        """Multiply the weights that make the output by the matrix."""
        assert isinstance(operator, LinearMap)
        for weight in output_weights(self.output_of(view, kept.index(self.layer)), view.hidden_size):
            weight.multiply(operator.weight.T)

    @staticmethod
    def output_of(decoder: Decoder, index: int) -> nn.Module:
        """The module whose output, as it is, is what a layer's MLP adds to the stream.

        Raises:
            ModelError: a norm stands between them, so that no matrix on the output could become part of a weight.
        """
        mlp = sublayers_of(decoder, index).mlp
        if mlp.is_norm:
            raise ModelError(
                f"{type(decoder.layers[index]).__name__} normalises its MLP's output before adding it, so no matrix on "
                "that output can be folded into its weights. Use patch=scalar, or a patch on the stream such as "
                "patch=lstsq."
            )
        return mlp.output


@dataclass(frozen=True)
class InProjection(AtLayer):
    """Beside the output projection of a sublayer: a map of what it reads, added to its weight.

    Attributes:
        part: Which sublayer: `mlp` or `attention`.
    """

    kind = "mlp_projection"
    adds_parameters = False

    part: str = MLP

    def expert_layer(self, decoder: Decoder) -> int | None:
        """Its layer, where that has no other experts."""
        return self.layer if self.projection_of(decoder, self.layer, self.part).is_routed else None

    @contextmanager
    def attached(self, decoder: Decoder, operator: nn.Module) -> Iterator[None]:
        """While open, the projection also writes what the operator makes of what it reads."""
        projection = self.projection_of(decoder, self.layer, self.part)

        def after_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            added = operator(projection.inputs(args, kwargs))
            return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

        with _hooked(projection.module, after_forward, with_kwargs=True):
            yield

    def check(self, dense: Decoder, operator: nn.Module) -> None:
        """Reject a map of another shape than the weight's."""
        width = self.projection_of(dense, self.layer, self.part).width
        given = operator.get_parameter("weight").shape
        check_same_shape(dense, f"the output projection of its {self.part}", given, (dense.hidden_size, width))

    @torch.no_grad()
    def add_to(self, view: Decoder, kept: Sequence[int], operator: nn.Module) -> None:
        """Add it to the weight."""
        self.projection_of(view, kept.index(self.layer), self.part).add(operator.get_parameter("weight").T)

    def can_fold(self, operator: nn.Module) -> bool:
        """Always: the weight holds it."""
        return True

    def fold(self, view: Decoder, kept: Sequence[int], operator: nn.Module) -> None:
        """Add it to the weight."""
        self.add_to(view, kept, operator)

    def idle(self, operator: Operator) -> Operator:
        """A map to nothing."""
        idle = copy.deepcopy(operator)
        for parameter in idle.parameters():
            parameter.data.zero_()
        return idle

    @staticmethod
    def projection_of(decoder: Decoder, index: int, part: str = MLP) -> Projection:
        """The output projection of a layer's MLP, or of its attention.

        Raises:
            ModelError: a norm stands between it and the stream, or the MLP writes to the stream otherwise.
        """
        kind = type(decoder.layers[index]).__name__
        if part == ATTENTION:
            check_changeable(sublayers_of(decoder, index).attention.output)
            module = sublayers_of(decoder, index).attention.projection
            writer = f"The attention of {kind} doesn't end in an output projection that writes to the stream"
        else:
            output = OnOutput.output_of(decoder, index)
            if is_mixture(output):
                return expert_projection(output, decoder.hidden_size)
            check_changeable(output)
            module = sublayers_of(decoder, index).mlp.projection
            writer = f"The MLP of {kind} ends in {type(output).__name__}, not in an output projection"
        if module is None:
            raise ModelError(f"{writer}, which could be fitted again. Use a patch on the stream, such as patch=lstsq.")
        return MatrixProjection(module)

    @staticmethod
    def width(decoder: Decoder, index: int) -> int:
        """How many hidden units that projection reads."""
        return InProjection.projection_of(decoder, index).width


@contextmanager
def _hooked(module: nn.Module, after_forward: Callable[..., Any], *, with_kwargs: bool = False) -> Iterator[None]:
    handle = module.register_forward_hook(after_forward, with_kwargs=with_kwargs)
    try:
        yield
    finally:
        handle.remove()


def _attach(view: Decoder, module: nn.Module, operator: nn.Module, side: str) -> dict[str, Any]:
    """Attach a copy of an operator; the answer is its entry in the view's configuration."""
    name = next(name for name, candidate in view.model.named_modules() if candidate is module)
    attach(module, copy.deepcopy(operator), side)
    spec = {"operator": operator.name, **operator.spec()} if isinstance(operator, Operator) else {}
    return {"module": name, "side": side, **spec}


def _divide(sublayer: Sublayer, alpha: float, hidden_size: int) -> None:
    """Make a sublayer add 1/α of what it added."""
    if sublayer.is_norm:
        # Families store a norm's gain, or how far it is from 1: a vector of ones comes back as the gain.
        weight = read_parameter(sublayer.output, "weight")
        offset = (sublayer.output(torch.ones_like(weight)) - weight).double().mean().round()
        replace_parameter(sublayer.output, "weight", (weight.double() + offset) / alpha - offset)
        return
    for output in output_weights(sublayer.output, hidden_size):
        output.divide(alpha)
