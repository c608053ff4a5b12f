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
from linearpatch.models.passes import mlp_inputs, mlp_outputs, record
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
        self, removed: Sequence[int], candidates: Sequence[int], *, survivors: int | None
    ) -> list[CandidateLoss]:
        """An operator stays where it is when the layer that reads it is removed."""
        base = self._edit.without_layers(self.dense_index[layer] for layer in removed)
        edits = [base.without_layers([self.dense_index[layer]]) for layer in candidates]
        return self._dense.losses(self.blocks, base, edits, survivors=survivors)


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

    def _replaced(self, batch: Tensor, mlp_layers: Collection[int], products: Collection[int]) -> dict[int, LayerInput]:
        start = self._site.interface.start
        reader = self._kept.index(self._site.reader)
        with (
            mlp_outputs(self._view, map(self._kept.index, mlp_layers)) as added,
            mlp_inputs(self._view, map(self._kept.index, products)) as read,
        ):
            stream = record(self._view, batch, {reader}).streams[reader]
        before = self._kept.index(start - 1) if mlp_layers or products else -1
        return {start: LayerInput(start, stream, added.get(before), read.get(before))}
