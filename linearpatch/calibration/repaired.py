"""What the calibration tokens look like in a model that lost some layers already and was patched.

The dense model's workspace sees the streams of the dense model. Here are two that see others: all streams
of a shortened model, by which the next layer to go is chosen; and the dense model's streams but for one,
on which the next patch is fitted as the earlier patches leave it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from linearpatch.calibration.statistics import LayerInput
from linearpatch.calibration.suffix import CandidateLoss, Shortened
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.decoder import decoder_of
from linearpatch.models.passes import mlp_inputs, mlp_outputs, record
from linearpatch.models.views import Site, view_of
from linearpatch.registry import identity


class RepairedWorkspace(Workspace):
    """The workspace of a shortened model, patched as drafts are.

    Layers are counted in that model; `dense_index` says which of the dense model's they are.

    Args:
        dense: The dense model's workspace.
        removed: Dense indices of the layers that are gone.
    """

    def __init__(self, dense: Workspace, removed: Sequence[int]) -> None:
        (model,) = dense.drafts.models([removed])
        super().__init__(
            decoder_of(view_of(dense.decoder, model.removed, model.patches)),
            dense.blocks,
            cache=dense.cache,
            model_key={**dense.key, "removed": sorted(removed), "patch": identity(dense.drafts.patch)},
            batch_size=dense.batch_size,
        )
        self._dense = dense
        self._model = model
        self.dense_index = [layer for layer in range(dense.num_layers) if layer not in removed]

    def _losses_without(
        self, removed: Sequence[int], candidates: Sequence[int], *, survivors: int | None
    ) -> list[CandidateLoss]:
        """A patch stays where it is when the layer that reads it goes."""
        gone = [*self._model.removed, *(self.dense_index[layer] for layer in removed)]
        base = replace(self._model, removed=tuple(gone))
        models = [replace(self._model, removed=(*gone, self.dense_index[layer])) for layer in candidates]
        return self._dense.losses(self.blocks, base, models, survivors=survivors)


class BehindWorkspace(Workspace):
    """The dense model's workspace, but one stream is as a shortened, patched model leaves it.

    Args:
        dense: The dense model's workspace.
        model: What lies before the site: layers that are gone, patches fitted so far.
        site: Where the next patch will be; its stream `start` is replaced.
    """

    def __init__(self, dense: Workspace, model: Shortened, site: Site) -> None:
        super().__init__(dense.decoder, dense.blocks, held_out=dense._held_out, batch_size=dense.batch_size, base=model)
        self._view = decoder_of(view_of(dense.decoder, model.removed, model.patches))
        self._site = site
        self._kept = [layer for layer in range(dense.num_layers + 1) if layer not in model.removed]

    def _replaced(self, batch: Tensor, mlp_layers: Collection[int], products: Collection[int]) -> dict[int, LayerInput]:
        reader = self._kept.index(self._site.reader)
        with (
            mlp_outputs(self._view, map(self._kept.index, mlp_layers)) as added,
            mlp_inputs(self._view, map(self._kept.index, products)) as read,
        ):
            stream = record(self._view, batch, {reader}).streams[reader]
        before = self._kept.index(self._site.start - 1) if mlp_layers or products else -1
        return {self._site.start: LayerInput(self._site.start, stream, added.get(before), read.get(before))}
