"""What every budget is: a limit from which the number of removed layers follows.

A new budget is one file here, one YAML in `conf/budget/` and one test; nothing else changes.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_range
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import component, name_of
from linearpatch.results.budget import BudgetSection, SizeSection

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """A limit as it is for one dense model.

    Attributes:
        limit: What a model may have at most, in `unit` …
        dense: … and what the dense model has.
        unit: Such as `bytes`.
        measure: What a model has: its value, and the value's standard error where there is one.
        estimate: The number of layers at which the search begins.
        margin: So many standard errors above its value must be within the limit, too.
        is_noisy: Measuring a model again gives another value. The size that is found is then measured once more: of
            several sizes near the limit, a search would take the first that noise favours.
    """

    limit: float
    dense: float
    unit: str
    measure: Callable[[Edit], tuple[float, float | None]]
    estimate: int = 1
    margin: float = 0.0
    is_noisy: bool = False


@dataclass(frozen=True)
class Budget:
    """Decides how many layers go, or leaves that to `num_pruned_layers`."""

    version: ClassVar[int] = 1
    needs_held_out: ClassVar[bool] = False  # whether it measures models on tokens that nothing was fitted on


@component("budget", "none")
@dataclass(frozen=True)
class NoBudget(Budget):
    """`num_pruned_layers` says how many layers go."""


@dataclass(frozen=True)
class Limit(Budget, ABC):
    """A limit: the number of removed layers follows from it."""

    takes_most: ClassVar[bool] = False  # the most layers within the limit, and not the fewest

    @property
    @abstractmethod
    def label(self) -> str:
        """What the name of a run has in place of a number of layers, such as `parameters0.8`."""

    @abstractmethod
    def limits(self, workspace: Workspace, sizes: Sequence[int]) -> Limits:
        """The limit for one model.

        Args:
            workspace: The dense model and its tokens.
            sizes: Numbers of layers that may be removed, ascending.
        """

    def resolve(self, workspace: Workspace, sizes: Sequence[int], patched: Callable[[int], Edit]) -> BudgetSection:
        """Find the number of layers.

        Neighbouring sizes are compared, so that what is recorded shows both the size that is taken and the next one,
        which isn't within the limit (or removes more than it asks for).

        Args:
            workspace: The dense model and its tokens.
            sizes: Numbers of layers that may be removed, ascending.
            patched: The model with so many layers removed and its interfaces repaired.

        Raises:
            ConfigError: no size is within the limit.
        """
        limits = self.limits(workspace, sizes)
        measured: dict[int, SizeSection] = {}

        def measure(n: int) -> SizeSection:
            value, stderr = limits.measure(patched(n))
            is_within = value + limits.margin * (stderr or 0.0) <= limits.limit
            measured[n] = SizeSection(n, value, stderr, is_within)
            log.info("budget: %d layers removed: %.6g %s, at most %.6g", n, value, limits.unit, limits.limit)
            return measured[n]

        def size(n: int) -> SizeSection:
            return measured[n] if n in measured else measure(n)

        find = most_within if self.takes_most else fewest_within
        num_removed = find(sizes, size, limits)
        while num_removed is not None and limits.is_noisy and not measure(num_removed).is_within:
            num_removed = find(sizes, size, limits)
        if num_removed is None:
            nearest = measured[sizes[0] if self.takes_most else sizes[-1]]
            which = "one layer removed" if self.takes_most else f"{nearest.num_pruned_layers} layers removed, the most,"
            raise ConfigError(
                f"budget={name_of(self)}: no number of removed layers is within {limits.limit:.6g} {limits.unit}: "
                f"with {which} the model has {nearest.value:.6g}, the dense one {limits.dense:.6g}. Raise the limit "
                "(budget.at_most)."
            )
        taken = measured[num_removed]
        log.info(
            "budget: %d layers are removed, %.6g of at most %.6g %s (%.1f %% to spare)", num_removed, taken.value,
            limits.limit, limits.unit, 100 * (1 - taken.value / limits.limit),
        )  # fmt: skip
        sizes_measured = [measured[n] for n in sorted(measured)]
        return BudgetSection(
            name_of(self), limits.limit, limits.unit, limits.dense, num_removed, taken.value, sizes_measured
        )


def fewest_within(sizes: Sequence[int], size: Callable[[int], SizeSection], limits: Limits) -> int | None:
    """The fewest layers within a limit; None where no size is.

    Each guess follows from what the last one saved for each layer; the sizes below the first that is within the limit
    are measured one by one.

    Args:
        sizes: Numbers of layers, ascending by one.
        size: Measures one.
        limits: The limit, and where to begin.
    """
    n, too_few = min(max(limits.estimate, sizes[0]), sizes[-1]), sizes[0] - 1
    while not size(n).is_within:
        if n == sizes[-1]:
            return None
        too_few, saved = n, (limits.dense - size(n).value) / n
        guess = ceil((limits.dense - limits.limit) / saved) if saved > 0 else 2 * n
        n = min(max(guess, n + 1), sizes[-1])
    while n - 1 > too_few and size(n - 1).is_within:
        n -= 1
    return n


def most_within(sizes: Sequence[int], size: Callable[[int], SizeSection], limits: Limits) -> int | None:
    """The most layers within a limit: steps that double, then halves; None where not even the first size is.

    Assumes that no size within the limit comes after one that isn't.

    Args:
        sizes: Numbers of layers, ascending by one.
        size: Measures one.
        limits: The limit.
    """
    within, outside, step = sizes[0] - 1, sizes[-1] + 1, 1
    while outside - within > 1:
        n = min(within + step, (within + outside) // 2 if outside <= sizes[-1] else sizes[-1])
        if size(n).is_within:
            within, step = n, 2 * step
        else:
            outside = n
    return within if within >= sizes[0] else None


def sizes_of(pruner: Pruner, num_layers: int) -> range:
    """Numbers of layers, or of sublayers, that a pruner can remove.

    Raises:
        ConfigError: there are none.
    """
    for most in range(2 * num_layers, 0, -1):  # sublayers, two of each layer
        try:
            pruner.check(num_layers, most)
        except ConfigError:
            continue
        return range(1, most + 1)
    pruner.check(num_layers, 1)
    raise ConfigError(f"pruner={name_of(pruner)} can remove no layer of the model's {num_layers}. Choose another.")


def check_size(num_pruned_layers: int | None, num_pruned: int | None, budget: Budget) -> None:
    """Reject a run that says twice, or not at all, how many layers or sublayers go.

    Raises:
        ConfigError: says which to leave out.
    """
    numbers = {"num_pruned_layers": num_pruned_layers, "num_pruned": num_pruned}
    given = {name: number for name, number in numbers.items() if number is not None}
    if isinstance(budget, Limit) and given:
        name, number = next(iter(given.items()))
        raise ConfigError(
            f"{name}={number} and budget={name_of(budget)} both set the number of layers to remove. Set "
            f"{name}=null, or budget=none."
        )
    if not isinstance(budget, Limit) and not given:
        raise ConfigError(
            "The number of layers to remove is missing. Set num_pruned_layers=5, or a budget such as budget=parameters."
        )
    if num_pruned_layers is not None:
        require_range("num_pruned_layers", num_pruned_layers, low=1)


def num_parameters(dense: Decoder, edit: Edit) -> int:
    """Parameters of an edited model, those of its patches among them."""
    return dense.num_parameters - edit.num_parameters_removed(dense) + edit.num_added_parameters
