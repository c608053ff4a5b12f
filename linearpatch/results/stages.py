"""The stages of a run: the models that it can evaluate, each an edit of the dense one."""

from __future__ import annotations

STAGES = ("dense", "pruned", "patched", "distilled")

# Groups of settings that matter from each stage on. What is measured, kept and shown of a run doesn't make its models.
ADDED_SETTINGS = {
    "dense": ("model",),
    "pruned": ("corpus", "calibration", "pruner"),
    "patched": ("patch",),
    "distilled": ("distillation", "distill"),
}


def stages_before(stage: str) -> tuple[str, ...]:
    """What a stage is compared with.

    >>> stages_before("patched")
    ('dense', 'pruned')
    """
    return STAGES[: STAGES.index(stage)]


def setting_groups(stage: str) -> tuple[str, ...]:
    """Groups of settings that make the model of a stage."""
    return tuple(group for earlier in (*stages_before(stage), stage) for group in ADDED_SETTINGS[earlier])
