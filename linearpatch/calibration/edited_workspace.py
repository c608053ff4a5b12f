"""Workspaces of edited models: what the calibration tokens look like once layers are removed and interfaces repaired.

The dense model's workspace sees the streams of the dense model. Here are two that see others: all streams
of an edited model, by which the next layer is chosen; and the dense model's streams but for one,
on which the next operator is fitted as the earlier ones leave it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from linearpatch.calibration.candidate_losses import CandidateLoss
from linearpatch.calibration.statistics import LayerInput
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit, Site
from linearpatch.models.passes import mlp_outputs, projection_inputs, record
from linearpatch.models.units import Removable, Unit, as_units, sublayer_before
from linearpatch.registry import identity


class EditedWorkspace(Workspace):
    """The workspace of an edited model, repaired as candidates of a search are.

    Layers are counted in that model; `dense_index` says which of the dense model's they are.

    Args:
        dense: The dense model's workspace.
        removed: Dense indices of the layers that are removed.
    """

    def __init__(self, dense: Workspace, removed: Sequence[int]) -> None:
        (edit,) = dense.candidate_edits.edits([removed])
        super().__init__(
            edit.decoder(dense.decoder),
            dense.blocks,
            cache=dense.cache,
            model_key={**dense.key, "removed": sorted(removed), "patch": identity(dense.candidate_edits.patch)},
            batch_size=dense.batch_size,
        )
        self._dense = dense
        self._edit = edit
        self.dense_index = [layer for layer in range(dense.num_layers) if layer not in removed]

    def _losses_without(
        self,
        removed: Sequence[Removable],
        candidates: Sequence[Removable],
        *,
        survivors: int | None,
        objective: str,
    ) -> list[CandidateLoss]:
        """An operator stays where it is when the layer that reads it is removed."""
        base = self._edit.without_units(map(self._dense_unit, as_units(removed)))
        edits = [base.without_units([self._dense_unit(unit)]) for unit in as_units(candidates)]
        return self._dense.losses(self.blocks, base, edits, survivors=survivors, objective=objective)

    def _dense_unit(self, unit: Unit) -> Unit:
        return Unit(self.dense_index[unit.layer], unit.part)


class SequentialWorkspace(Workspace):
    """The dense model's workspace, but one stream is as an edited model leaves it.

    Args:
        dense: The dense model's workspace.
        edit: What lies before the site: layers that are removed, operators fitted so far.
        site: Where the next operator will be; the stream at the start of its interface is replaced.
    """

    def __init__(self, dense: Workspace, edit: Edit, site: Site) -> None:
        super().__init__(
            dense.decoder,
            dense.blocks,
            held_out=dense._held_out,
            batch_size=dense.batch_size,
            offload_streams=dense.offload_streams,
            base=edit,
        )
        self._dense = dense
        self._edit = edit
        self._view = edit.decoder(dense.decoder)
        self._site = site
        self._kept = [layer for layer in range(dense.num_layers + 1) if layer not in edit.removed_layers]

    def on_held_out(self, *, keep_streams: bool = False) -> Workspace:
        """The same stream replaced on the held-out tokens."""
        return SequentialWorkspace(self._dense.on_held_out(), self._edit, self._site)

    def _replaced(
        self, batch: Tensor, mlp_layers: Collection[int], projections: Collection[Unit]
    ) -> dict[float, LayerInput]:
        start = self._site.interface.start
        reader = self._kept.index(self._site.reader)
        units = {unit: Unit(self._kept.index(unit.layer), unit.part) for unit in projections}
        with (
            mlp_outputs(self._view, map(self._kept.index, mlp_layers)) as added,
            projection_inputs(self._view, units.values()) as read,
        ):
            stream = record(self._view, batch, {reader}).streams[reader]
        before = sublayer_before(start)
        output = added.get(self._kept.index(before.layer)) if mlp_layers else None
        projected = read[units[before]] if projections else None
        return {start: LayerInput(start, stream, output, projected)}
