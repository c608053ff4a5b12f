"""What is removed: the statistics that decide it, the choice, and whether what is left would be the same model."""

from __future__ import annotations

import logging

from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.rebuilding import check_rebuilt, check_removal
from linearpatch.models.units import LAYER
from linearpatch.patches.patch import Patch
from linearpatch.pruners.pruner import Pruner

log = logging.getLogger(__name__)


def statistics_of(pruner: Pruner, patch: Patch, n: int | None) -> list[Statistic]:
    """What a pruner that removes n units and then a patch ask; where a budget decides the number, the patch alone."""
    of_pruner = [] if n is None else pruner.chooser.statistics(n)
    return [*of_pruner, *(one if pruner.unit == LAYER else one.of_sublayers() for one in patch.statistics())]


def rank(pruner: Pruner, patch: Patch, workspace: Workspace, n: int) -> Edit:
    """Choose the layers to remove; what the patch needs of the dense model comes from the same pass."""
    pruner.chooser.check_family(workspace.decoder)
    workspace.collect(*statistics_of(pruner, patch, n))
    edit = pruner.choose(workspace, n)
    workspace.release()
    log.info("%s", edit.summary())
    return edit


def check_removable(dense: Decoder, edit: Edit, save_format: str | None) -> None:
    """Reject, before the long work, layers whose removal would change others, or that couldn't be saved as asked.

    Args:
        dense: The dense model.
        edit: What is removed.
        save_format: That of the checkpoint; None: nothing is saved.

    Raises:
        ModelError: says which, and what works instead.
    """
    pruned = edit.view(dense)
    check_removal(dense, pruned, edit.removed_layers, edit.narrowed, edit.removed_parts)
    if save_format not in (None, "adapter") and edit.is_stock:  # others are loaded again when they are saved
        check_rebuilt(dense, pruned, edit.removed_layers)
