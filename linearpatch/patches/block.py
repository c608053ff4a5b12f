"""A layer next to each interface, trained on the stream that it must produce."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linearpatch.calibration.candidate_edits import Repairer, ready
from linearpatch.calibration.edited_workspace import SequentialWorkspace
from linearpatch.calibration.workspace import Workspace
from linearpatch.distillation.patch_forms import OperatorPatch
from linearpatch.distillation.trainable_sets import SIDES, Neighbours, parameter_of
from linearpatch.errors import ConfigError, ModelError, require_choice, require_range
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit, PlacedOperator, Site
from linearpatch.models.modeling_linearpatch import LinearMap, Operator
from linearpatch.models.places import InProjection, Place
from linearpatch.models.runner import Runner
from linearpatch.models.units import Interface
from linearpatch.models.weight_changes import Weights, describe_weights, tensors_of, weights_from
from linearpatch.patches.before_interface import RefitPatch
from linearpatch.patches.least_squares import LeastSquaresPatch, Solution
from linearpatch.patches.local_training import LocalTraining, lessons_of
from linearpatch.patches.patch import Patch
from linearpatch.patches.penalty import Penalty
from linearpatch.registry import component, components, identity
from linearpatch.storage.cache import Entry

log = logging.getLogger(__name__)

WEIGHT = "weight."  # how names of changed weights' tensors begin in a cached result


@component("patch", "block", title="block repair")
@dataclass(frozen=True)
class Block(RefitPatch):
    """The layer next to each interface, all its weights, trained on the stream that it must produce.

    It begins as `mlp_refit` leaves the layer before the interface. No layer but those next to the interface runs: what
    they read and must produce is recorded once, in memory. The weights with the lowest error on held-out tokens are
    kept, which are those of the start where no step improves them.

    Attributes:
        side: Which layer trains: the one `before` the interface, to produce what the layer after it used to read; the
            one `after` it, or `both`, to produce what the layer after that used to read.
        steps: Of gradient descent, at most; each takes `calibration.batch_size` blocks.
        learning_rate: Of AdamW at the beginning; it follows a cosine.
        ridge: Of the start; see `mlp_refit`.
        weighting: Of tokens, in the start and in training: `capped`, `none` or `relative`; see `LeastSquaresPatch`.
    """

    foldable: ClassVar[bool] = True
    foldable_distilled: ClassVar[bool] = True
    version: ClassVar[int] = 1

    ridge: Any = "auto"
    side: str = "before"
    steps: int = 300
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("patch.side", self.side, SIDES)
        require_range("patch.steps", self.steps, low=1)
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"patch.learning_rate is {self.learning_rate}. Allowed: more than 0, such as 3e-4.")

    @property
    def needs_held_out(self) -> bool:
        """They decide which step is kept."""
        return True

    @property
    def repairer(self) -> Repairer:
        """Itself: it knows how to take interfaces one after the other."""
        return self

    def check(self, decoder: Decoder) -> None:
        """Reject weights on several devices as well."""
        super().check(decoder)
        devices = {parameter.device for parameter in decoder.model.parameters()}
        if len(devices) > 1 or torch.device("meta") in devices:
            raise ModelError(
                "patch=block trains layers, which it can't while the weights are on several devices or on disk "
                "(model.device_map). Use a device with more memory, or patch=mlp_refit."
            )

    def draft(self) -> Patch:
        """The map of refit's drafts: a tenth of the work of `mlp_refit`."""
        stand_in: Patch = components("patch")["lstsq"](bias=True, ridge=1e-4, weighting="relative")
        return stand_in

    @property
    def start(self) -> LeastSquaresPatch:
        """What it begins as."""
        shared = {name: getattr(self, name) for name in ("ridge", "weighting", "sequential", "compare")}
        closed_form: LeastSquaresPatch = components("patch")["mlp_refit"](**shared)
        return closed_form

    def simpler(self) -> Mapping[str, Patch]:
        """What it begins as."""
        return {"mlp_refit, its start": self.start}

    def places(self, interface: Interface) -> Sequence[Place]:
        """In the output projection of the MLP before it."""
        return [InProjection(interface.layers.start - 1)]

    def regression(self, gram: Mapping[str, Tensor], penalty: Penalty) -> Solution:
        """That of the start."""
        return self.start.regression(gram, penalty)

    def operators(
        self, gram: Mapping[str, Tensor], penalty: Penalty, check: Mapping[str, Tensor] | None = None
    ) -> tuple[list[nn.Module], Solution]:
        """Those of the start."""
        return self.start.operators(gram, penalty, check)

    def repair(self, workspace: Workspace, edit: Edit) -> Edit:
        """The edit with an operator in the output projection before each interface, and the layers' other weights.

        Raises:
            ConfigError: a layer would train for two interfaces at once, or there is none to train.
        """
        self._check_layers(workspace.decoder, edit)
        operators: list[PlacedOperator] = []
        weights: Weights = edit.weights
        for site in self.place(edit.interfaces):
            before = edit.before(site.reader).with_operators(operators).with_weights(weights)
            placed, changed = self._repaired(workspace, site, before)
            operators.append(placed)
            weights = {**weights, **changed}
        return edit.with_operators(operators).with_weights(weights)

    def _check_layers(self, decoder: Decoder, edit: Edit) -> None:
        trained = [layer for interface in edit.interfaces for layer in self._layers(interface.layers)]
        if decoder.num_layers in trained:
            raise ConfigError(
                f"patch.side={self.side} trains the layer after each interface, and after layer "
                f"{decoder.num_layers - 1} there is none. Use patch.side=before, or pruner.protect_last=1."
            )
        twice = sorted({layer for layer in trained if trained.count(layer) > 1})
        if twice and not self.sequential:
            raise ConfigError(
                f"Layer {twice[0]} lies between two interfaces, and patch.side={self.side} would train it for both at "
                "once. Use patch.sequential=true, which takes one after the other, or patch.side=before."
            )

    def _layers(self, removed: range) -> list[int]:
        return [
            layer
            for layer, side in ((removed.start - 1, "before"), (removed.stop, "after"))
            if self.side in (side, "both")
        ]

    def _repaired(self, workspace: Workspace, site: Site, before: Edit) -> tuple[PlacedOperator, Weights]:
        """What one interface gets, on the stream as the edit before it leaves it (`sequential`) or the dense one's."""
        shown = SequentialWorkspace(workspace, before, site) if self.sequential else workspace
        (start,) = self.fit(shown, [site])
        key = {
            **workspace.key,
            "held_out": workspace.held_out.hash,
            "patch": identity(self),
            "interface": [site.interface.start, site.interface.end],
            "before": before.identity() if self.sequential else None,
            "batches": [len(batch) for batch in workspace.batches],
        }
        entry = workspace.cache.get("block", key, lambda: self._trained(workspace, start, before))
        diagnostics = {**start.diagnostics, **entry.facts["diagnostics"]}
        placed = replace(start, module=LinearMap(entry.tensors["operator"]), diagnostics=diagnostics)
        return placed, weights_from(entry.facts["weights"], entry.tensors, WEIGHT)

    def _trained(self, workspace: Workspace, start: PlacedOperator, before: Edit) -> Entry:
        began = time.monotonic()
        interface, decoder = start.site.interface, workspace.decoder
        reader = interface.layers.stop if self.side == "before" else interface.layers.stop + 1
        student = self._student(decoder, start, before)
        shown = before if self.sequential else Edit()
        gram = self.gram(start.site)
        lessons, checks = (
            lessons_of(decoder, batches, shown, interface.layers.start - 1, reader, gram)
            for batches in (workspace.batches, workspace.on_held_out().batches)
        )
        training = LocalTraining(student, reader, lessons, checks, self.steps, self.learning_rate)
        training.run()
        (placed,) = student.edit.operators
        assert isinstance(placed.module, OperatorPatch)
        operator = placed.module.operator().get_parameter("weight")
        weights: Weights = {}  # where no step was better, the start is all that changes
        if training.best_step:
            weights = {name: change.trained() for name, change in student.edit.weights.items()}
        facts = {
            "weights": describe_weights(weights),
            "diagnostics": {
                "error_start": training.first_error,
                "error_held_out": training.best_error,
                "steps": training.step,
                "best_step": training.best_step,
                "num_trained": sum(parameter.numel() for parameter in training.parameters),
                "seconds": round(time.monotonic() - began, 1),
            },
        }
        log.info(
            "patch=block at %s: error on held-out tokens %.4f at the start, %.4f after step %d of %d",
            interface, training.first_error, training.best_error, training.best_step, training.step,
        )  # fmt: skip
        tensors = {name: values.cpu() for name, values in tensors_of(weights, WEIGHT).items()}
        return Entry({"operator": operator.detach().T.cpu().contiguous(), **tensors}, facts)

    def _student(self, decoder: Decoder, start: PlacedOperator, before: Edit) -> Runner:
        """The layers next to an interface, ready to train; the projection trains as the operator inside it."""
        interface = start.site.interface
        assert isinstance(start.module, Operator)
        operator = OperatorPatch(start.module.to(decoder.input_device), around_start=False)
        local = Edit.of_layers(interface.layers, [replace(start, module=operator)])
        near = (interface.layers.start - 1, interface.layers.stop)
        changed = ready(before, decoder).weights
        local = local.with_weights({name: change for name, change in changed.items() if name.layer in near})
        weights = Neighbours(1, self.side).weights(decoder, local, seed=0)
        if self.side == "after":
            operator.requires_grad_(False)
        else:
            projection = InProjection.projection_of(decoder, interface.layers.start - 1)
            trained = {id(weight.module.get_parameter(weight.name)) for weight in projection.weights}
            weights = {
                name: change
                for name, change in weights.items()
                if name in local.weights or id(parameter_of(decoder, name)) not in trained
            }
        return Runner(decoder, local.with_weights(weights))
