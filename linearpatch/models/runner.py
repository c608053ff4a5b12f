"""An edited model, run from its first difference on from hidden states of the dense one; no view is built.

Up to there it computes what the dense model does. So whoever has the dense model's hidden states (a search over
candidates, the student of a distillation) runs the rest alone, with gradients where they are wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder, LayerCall, unwrap
from linearpatch.models.edit import Edit, PlacedOperator
from linearpatch.models.offload import is_offloaded
from linearpatch.models.removal import without_sublayers
from linearpatch.models.weight_changes import WeightChange, changed_decoder


@dataclass(frozen=True)
class Step:
    """A layer that is kept, with the operators that run with it. Steps are equal where they compute the same.

    Attributes:
        layer: Dense index; the number of layers stands for the final norm.
        operators: Those that act on what it reads or writes.
        weights: Changes of its own weights, which the decoder that it runs on has (`changed_decoder`).
        removed_part: The sublayer that it lacks, `attention` or `mlp`; empty: it has both.
    """

    layer: int
    operators: tuple[PlacedOperator, ...] = ()
    weights: tuple[WeightChange, ...] = ()
    removed_part: str = ""

    def read(self, hidden: Tensor) -> Tensor:
        """What the layer reads, once operators have acted on the stream that reaches it."""
        for placed in self.operators:
            hidden = placed.place.on_input(placed.module, hidden)
        return hidden

    def run(self, decoder: Decoder, hidden: Tensor, call: LayerCall) -> Tensor:
        """What the layer makes of that, `[batch, tokens, hidden_size]`."""
        decoder = without_sublayers(decoder, {self.layer: self.removed_part} if self.removed_part else {})
        with ExitStack() as stack:
            for placed in self.operators:
                stack.enter_context(placed.place.attached(decoder, placed.module))
            return unwrap(decoder.layers[self.layer](hidden, *call.args, **call.kwargs))


def steps_of(edit: Edit, num_layers: int) -> list[Step]:
    """The steps of an edited model; the last one is the final norm, which `Step.read` prepares and nobody runs.

    Raises:
        ModelError: layers of it are narrower than the dense model's, which run here.
    """
    if edit.narrowed:
        raise ModelError(
            "A model whose layers lost heads and channels can't be run on the dense model's layers, as searches, fits "
            "of patches and distillation do. Build its view (edit.view), or remove whole layers."
        )
    removed = set(edit.removed_layers)
    operators: dict[int, list[PlacedOperator]] = {}
    for placed in sorted(edit.operators, key=lambda placed: placed.place.first_layer):
        operators.setdefault(placed.place.runs_with(removed), []).append(placed)
    weights: dict[int, list[WeightChange]] = {}
    for name, change in edit.weights.items():
        weights.setdefault(name.layer, []).append(change)
    kept = [layer for layer in range(num_layers + 1) if layer not in removed]
    return [
        Step(layer, tuple(operators.get(layer, ())), tuple(weights.get(layer, ())), edit.removed_parts.get(layer, ""))
        for layer in kept
    ]


@dataclass(frozen=True)
class Runner:
    """Runs an edited model.

    Attributes:
        decoder: The dense model, whose layers run; never changed.
        edit: The difference. Gradients reach its operators and changed weights where they ask for them.
        recompute: Keep only what each layer reads for the backward pass, and run it again there (gradient
            checkpointing). Layers that are offloaded to CPU memory or disk always do.
        changed: The decoder with the edit's changed weights, where it exists already; None makes it.
    """

    decoder: Decoder
    edit: Edit
    recompute: bool = False
    changed: Decoder | None = None

    @cached_property
    def edited(self) -> Decoder:
        """The layers, final norm and head that run: the dense model's, or their own where weights are changed."""
        return self.changed or changed_decoder(self.decoder, self.edit.weights)

    @cached_property
    def entry(self) -> int:
        """The stream of the dense model from which it runs: what the first layer reads that differs."""
        return self.edit.first_difference(self.decoder.num_layers)

    @cached_property
    def steps(self) -> list[Step]:
        """What it runs from there on."""
        return [step for step in steps_of(self.edit, self.decoder.num_layers) if step.layer >= self.entry]

    def run(self, hidden: Tensor, calls: Mapping[int, LayerCall]) -> Tensor:
        """What enters the final norm.

        Args:
            hidden: The dense model's stream `entry`, `[batch, tokens, hidden_size]`.
            calls: What each layer is given beside it.
        """
        final = self.decoder.num_layers
        return self.streams(hidden, calls, [final])[final]

    def streams(self, hidden: Tensor, calls: Mapping[int, LayerCall], layers: Collection[int]) -> dict[int, Tensor]:
        """What some layers read (the final norm for the number of layers); nothing runs after the last of them.

        Args:
            hidden: The dense model's stream `entry`.
            calls: What each layer is given beside it.
            layers: Dense indices of kept layers.
        """
        streams: dict[int, Tensor] = {}
        for step in self.steps:
            hidden = step.read(hidden)
            if step.layer in layers:
                streams[step.layer] = hidden
            if len(streams) == len(layers):
                break
            recompute = self.recompute or step.layer in self._offloaded  # whose weights shouldn't stay
            if recompute and (hidden.requires_grad or step.layer in self._changed):
                hidden = checkpoint(step.run, self.edited, hidden, calls[step.layer], use_reentrant=False)
            else:
                hidden = step.run(self.edited, hidden, calls[step.layer])
        return streams

    @cached_property
    def _offloaded(self) -> frozenset[int]:
        return frozenset(index for index, layer in enumerate(self.decoder.layers) if is_offloaded(layer))

    @cached_property
    def _changed(self) -> frozenset[int]:
        return frozenset(name.layer for name in self.edit.weights)
