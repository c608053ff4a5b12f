"""The section of a record that says which limit decided how many layers were removed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import with_config

from linearpatch.results.fields import CHECKED, Count, Name, Number


@with_config(CHECKED)
@dataclass(frozen=True)
class SizeSection:
    """A size that was measured.

    Attributes:
        num_pruned_layers: Layers removed.
        value: What the model has, in the budget's unit …
        stderr: … and its standard error; None where there is none.
        is_within: Whether that is within the limit.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("stderr",)

    num_pruned_layers: Count
    value: Number
    stderr: Number | None = None
    is_within: bool = False


@with_config(CHECKED)
@dataclass(frozen=True)
class BudgetSection:
    """What was limited, and by how much.

    Attributes:
        method: Name of the budget.
        limit: What the patched model may have at most.
        unit: Of all values.
        dense: What the dense model has.
        num_pruned_layers: Layers that were removed.
        value: What the patched model has.
        sizes: All sizes that were measured.
    """

    method: Name
    limit: Number
    unit: Name
    dense: Number
    num_pruned_layers: Count
    value: Number
    sizes: list[SizeSection] = field(default_factory=list)
