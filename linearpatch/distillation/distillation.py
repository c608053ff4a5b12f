"""What every distillation is: training of the patches against the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from linearpatch.registry import component


@dataclass(frozen=True)
class Distillation:
    """Refines fitted patches."""

    version: ClassVar[int] = 1


@component("distill", "none")
@dataclass(frozen=True)
class NoDistillation(Distillation):
    """The patches stay as they were fitted."""
