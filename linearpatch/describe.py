"""What a run did, as plain values for its record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from linearpatch.calibration.comparison import Repair
from linearpatch.data.blocks import TokenBlocks
from linearpatch.distillation.distill import Distilled
from linearpatch.experiment import Experiment
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Interface
from linearpatch.models.model import LoadedModel
from linearpatch.pruners.pruner import Selection
from linearpatch.registry import identity, name_of


def describe_model(experiment: Experiment, model: LoadedModel) -> dict[str, Any]:
    """The dense model."""
    decoder = model.decoder
    return {
        "name": experiment.model.label,
        "fingerprint": model.fingerprint,
        "num_layers": decoder.num_layers,
        "num_parameters": _num_parameters(decoder),
        "dtype": model.dtype,
        "note": experiment.model.note,
    }


def describe_calibration(experiment: Experiment, blocks: TokenBlocks, held_out: TokenBlocks | None) -> dict[str, Any]:
    """The tokens that layers were chosen with and patches fitted on."""
    readers = [experiment.calibration_reader, experiment.evaluation_reader]
    return {
        "corpus": blocks.source,
        "num_blocks": len(blocks.ids),
        "block_length": blocks.ids.shape[1],
        "token_hash": blocks.hash,
        "repetitions_left_out": blocks.repetitions.count,
        "held_out": {"num_blocks": len(held_out.ids), "token_hash": held_out.hash} if held_out else None,
        "notes": list(dict.fromkeys(reader.corpus.note for reader in readers if reader.corpus.note)),
    }


def describe_pruning(
    experiment: Experiment, dense: Decoder, selection: Selection, gaps: Sequence[Interface]
) -> dict[str, Any]:
    """Which layers went, and why."""
    removed = sum(p.numel() for layer in selection.removed for p in dense.layers[layer].parameters())
    return {
        "method": name_of(experiment.pruner),
        "sees_patches": experiment.pruner.sees_patches,
        "removed_layers": list(selection.removed),
        "interfaces": [[gap.start, gap.end] for gap in gaps],
        "scores": dict(selection.scores),
        "num_parameters_removed": removed,
        "ratio": removed / _num_parameters(dense),
    }


def describe_patch(experiment: Experiment, repaired: Repair) -> dict[str, Any]:
    """What was fitted and compared; operators that one fit gave, such as refit's two, are told once."""
    fits = {placed.site.interface: placed.diagnostics for placed in repaired.edit.operators}
    return {
        "method": name_of(experiment.patch),
        "num_parameters": repaired.edit.num_added_parameters,
        "sites": [{"start": one.start, "end": one.end, **diagnostics} for one, diagnostics in fits.items()],
        "comparison": repaired.comparison.describe() if repaired.comparison else None,
    }


def describe_distillation(
    experiment: Experiment, text: TokenBlocks, validation: TokenBlocks, distilled: Distilled
) -> dict[str, Any]:
    """How training went: settings, text, the curve, and which step was best."""
    losses = {int(point["step"]): point["validation_loss"] for point in distilled.history if "validation_loss" in point}
    return {
        "method": name_of(experiment.distill),
        "settings": {**identity(experiment.distill), "corpus": text.source},
        "num_blocks": len(text.ids),
        "block_length": text.ids.shape[1],
        "token_hash": text.hash,
        "text_tokens": text.available,
        "validation": {"num_blocks": len(validation.ids), "token_hash": validation.hash},
        "num_parameters": distilled.edit.num_added_parameters,
        "num_trained": distilled.num_trained,
        "num_steps": distilled.num_steps,
        "best_step": distilled.best_step,
        "validation_loss": {"first": losses.get(0), "best": losses.get(distilled.best_step)},
        "curve": [dict(point) for point in distilled.history],
    }


def _num_parameters(decoder: Decoder) -> int:
    return sum(parameter.numel() for parameter in decoder.model.parameters())
