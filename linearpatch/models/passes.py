"""One forward pass, seen layer by layer.

`walk` is the only way this package looks inside a model. It registers its own hooks, removes them when it
ends, and never uses `output_hidden_states` (whose last entry is taken after the final norm, and which
depends on who registered a hook first).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from linearpatch.models.decoder import Decoder, LayerCall, split_call, unwrap
from linearpatch.models.places import InProjection, OnOutput
from linearpatch.models.sublayers import mlp_reader, sublayers_of
from linearpatch.models.units import Unit

# Called with the index of the reader (`i + ½` for the MLP of layer i), the stream it reads, and the rest of its call.
Visitor = Callable[[float, Tensor, LayerCall], None]


class _Stop(Exception):
    """Ends a forward pass once the deepest wanted layer input has been seen."""


@dataclass(frozen=True)
class Recording:
    """What one forward pass gave to each layer.

    Attributes:
        streams: `streams[i]` is what layer `i` read, `[batch, tokens, hidden_size]`; the entry after the
            last layer is what the final norm read. Read-only: layers may share storage.
        calls: What each layer was given beside it.
    """

    streams: dict[int, Tensor]
    calls: dict[int, LayerCall]


@contextmanager
def _removed_at_the_end(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watching(
    decoder: Decoder, visit: Visitor, stop: float, before_patches: bool, between: Collection[int]
) -> Iterator[None]:
    shapes: list[torch.Size] = []  # of the layer's input: OPT flattens what its MLP reads

    def hook(index: float) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, call = split_call(args, kwargs)
            if isinstance(index, int):
                shapes[:] = [hidden.shape]
            visit(index, hidden.view(shapes[0]), call)
            if index == stop:
                raise _Stop

        return before_forward

    readers: list[tuple[float, nn.Module]] = [(index, decoder.reader(index)) for index in range(int(stop) + 1)]
    readers += [(index + 0.5, mlp_reader(decoder, index)) for index in between if index + 0.5 <= stop]
    handles = [
        reader.register_forward_pre_hook(hook(index), prepend=before_patches, with_kwargs=True)
        for index, reader in readers
    ]
    with _removed_at_the_end(handles):
        yield


@torch.no_grad()
def walk(
    decoder: Decoder,
    input_ids: Tensor,
    visit: Visitor,
    *,
    stop: float | None = None,
    before_patches: bool = False,
    between: Collection[int] = (),
) -> None:
    """Run one forward pass without gradients and visit what each layer reads, in order.

    Args:
        decoder: The model.
        input_ids: Token ids without padding, `[batch, tokens]`.
        visit: Called for layers `0, 1, …` and, with index `num_layers`, for the final norm.
        stop: Index of the last stream to visit; the pass ends there. None visits all.
        before_patches: In a patched model, see the stream that reaches a layer before the patch on its input.
        between: Layers of which the stream between attention and MLP is visited, too, as `i + ½`.

    Raises:
        ModelError: `between` names layers of a family whose sublayers can't be separated.
    """
    stop = decoder.num_layers if stop is None else stop
    with _watching(decoder, visit, stop, before_patches, between):
        try:
            decoder.hidden_states(decoder.forward(input_ids.to(decoder.input_device), use_cache=False))
        except _Stop:
            return


@contextmanager
def mlp_outputs(decoder: Decoder, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """While open, keep what the MLPs of some layers added to the stream in the last forward pass, by layer.

    Raises:
        ModelError: what the family's MLP writes doesn't reach the stream as it is.
    """
    added: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def after_forward(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            # A new tensor: Falcon adds its attention's output to this one in place.
            added[index] = unwrap(output) * multipliers[index]

        return after_forward

    layers = list(layers)
    multipliers = {index: sublayers_of(decoder, index).mlp.multiplier for index in layers}
    handles = [OnOutput.output_of(decoder, index).register_forward_hook(keep(index)) for index in layers]
    with _removed_at_the_end(handles):
        yield added


@contextmanager
def projection_inputs(decoder: Decoder, sublayers: Iterable[Unit]) -> Iterator[dict[Unit, Tensor]]:
    """While open, keep what the output projections of some sublayers read in the last forward pass.

    It is scaled so that the projection's weight alone leads to the stream.

    Raises:
        ModelError: such a sublayer has no output projection, or a norm stands between it and the stream.
    """
    read: dict[Unit, Tensor] = {}

    def keep(unit: Unit) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read[unit] = projections[unit].inputs(args, kwargs) * multipliers[unit]

        return before_forward

    sublayers = list(sublayers)
    multipliers = {unit: sublayers_of(decoder, unit.layer)[unit.part].multiplier for unit in sublayers}
    projections = {unit: InProjection.projection_of(decoder, unit.layer, unit.part) for unit in sublayers}
    handles = [
        projection.module.register_forward_pre_hook(keep(unit), with_kwargs=True)
        for unit, projection in projections.items()
    ]
    with _removed_at_the_end(handles):
        yield read


def record(
    decoder: Decoder, input_ids: Tensor, indices: Collection[int] | None = None, *, before_patches: bool = False
) -> Recording:
    """Run one forward pass and keep streams and calls.

    Args:
        decoder: The model.
        input_ids: Token ids without padding, `[batch, tokens]`.
        indices: Streams to keep; the pass ends at the last of them. None keeps all: one stream per layer.
        before_patches: As in `walk`: a layer that is called again with such a stream patches it itself.
    """
    streams: dict[int, Tensor] = {}
    calls: dict[int, LayerCall] = {}

    def keep(index: float, hidden: Tensor, call: LayerCall) -> None:
        assert isinstance(index, int)
        if indices is None or index in indices:
            streams[index] = hidden
        calls[index] = call

    walk(decoder, input_ids, keep, stop=None if indices is None else max(indices), before_patches=before_patches)
    return Recording(streams, calls)
