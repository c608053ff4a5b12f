"""What every patch is: settings, what it wants to know, and a fit at each site.

A new operator is one file here, one YAML in `conf/patch/` and one test; nothing else changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from linearpatch.calibration.candidate_edits import Repairer
from linearpatch.calibration.statistics import Magnitude, MagnitudeRatio, Statistic, ratio
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import require_choice
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit, PlacedOperator, Site
from linearpatch.models.places import OnStream
from linearpatch.models.units import Interface
from linearpatch.patches.sequential import Sequential

SITES = ("one_per_interface", "one_per_layer")
ESTIMATORS = ("ratio_of_means", "mean_of_ratios")


@dataclass(frozen=True)
class Patch(ABC):
    """Repairs the stream where layers were removed.

    Attributes:
        sequential: Fit operators from the first to the last, each on the stream as those before it leave it;
            the target stays the dense model's stream. A pass over the tokens for each.
        compare: Where calibration tokens are held out, compare the fit on them with no patch and with simpler fits,
            and keep the best (`calibration.comparison`). Without it the patch is what it is set to, whatever harm
            it does: for tables of methods.
    """

    version: ClassVar[int] = 1
    foldable: ClassVar[bool] = False  # whether weights of the stock model can absorb it …
    foldable_distilled: ClassVar[bool] = False  # … and still can when it has been trained

    sequential: bool = False
    compare: bool = True

    def __post_init__(self) -> None:  # noqa: B027 — has nothing to check itself
        """Subclasses check their settings here."""

    @property
    def repairer(self) -> Repairer:
        """What repairs, as the settings say: the patch itself, all at once, or one operator after the other."""
        return Sequential(self) if self.sequential else self

    def check(self, decoder: Decoder) -> None:
        """Reject a model that this patch can't be fitted to, before anything is computed."""
        self.check_size(decoder.hidden_size)

    def check_size(self, hidden_size: int) -> None:  # noqa: B027 — most patches fit every size
        """Reject settings that don't fit the stream's width, before a model is loaded."""

    def for_model(self, decoder: Decoder) -> Patch:
        """What is fitted to a model: itself, unless its settings name another patch for families like this one."""
        return self

    @abstractmethod
    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """The sites at some interfaces."""

    @property
    def is_matrix(self) -> bool:
        """Whether operators are x ↦ x P + b, or of another form, which distillation can only train as a whole."""
        return True

    @property
    def adds_layers(self) -> bool:
        """Whether its operators can be layers of their own, beside what folds, in formats that have such layers."""
        return False

    @property
    def needs_held_out(self) -> bool:
        """Whether the fit chooses something by its loss on tokens that nothing was fitted on."""
        return False

    def unknowns(self, decoder: Decoder) -> int:
        """Unknowns of the fit for each output channel, which decide how much text it needs."""
        return 1

    @property
    def uses_held_out(self) -> bool:
        """Whether it is compared or measured on held-out tokens where there are some; it needs none."""
        return self.compare

    def statistics(self) -> Sequence[Statistic]:
        """Statistics wanted whichever layers are removed; they share one pass with those of the pruner."""
        return ()

    def repair(self, workspace: Workspace, edit: Edit) -> Edit:
        """The edit with an operator at each of its interfaces."""
        if self.sequential:
            return self.repairer.repair(workspace, edit)
        return edit.with_operators(self.fit(workspace, self.place(edit.interfaces)))

    def together(self, sites: Sequence[Site]) -> list[list[Site]]:
        """Sites in groups that are fitted at once; one by one, as a rule."""
        return [[site] for site in sites]

    def draft(self) -> Patch:
        """What stands in for it where a search fits many interfaces: nothing that costs a pass for each of them."""
        return replace(self, sequential=False)

    def simpler(self) -> Mapping[str, Patch]:
        """Simpler fits that it is compared with on held-out tokens, by what they set otherwise; no patch always is.

        They need the statistics of the same pass.
        """
        return {}

    def interface_statistics(self, sites: Sequence[Site]) -> Sequence[Statistic]:
        """Statistics that `fit` asks for at some sites; asked for together, many interfaces share a pass."""
        return ()

    def check_statistics(self, sites: Sequence[Site]) -> Sequence[Statistic]:
        """Statistics of held-out tokens that `fit` asks for at some sites."""
        return ()

    @abstractmethod
    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """Fit one operator for each site, on the streams that the workspace shows."""


@dataclass(frozen=True)
class StreamPatch(Patch):
    """Base of the patches with one operator on the stream.

    Attributes:
        sites: `one_per_interface`, or `one_per_layer`: one operator for each removed layer (or sublayer, where an
            interface begins or ends at one), one after the other at the same place (the paper's tables 13 to 15).
    """

    sites: str = "one_per_interface"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("patch.sites", self.sites, SITES)

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """On the stream that the layer after each interface reads; with its attention removed, that is its MLP."""
        if self.sites == "one_per_interface":
            return [Site(interface, interface.reader, OnStream(interface.reader)) for interface in interfaces]
        return [
            Site(part, interface.reader, OnStream(interface.reader))
            for interface in interfaces
            for part in interface.parts
        ]


@dataclass(frozen=True)
class ScalePatch(StreamPatch):
    """Base of the patches that only scale: how far magnitudes grow across the interface.

    Attributes:
        estimator: `ratio_of_means` over all tokens (the paper, eq. 4), or `mean_of_ratios` over blocks
            (the official code).
    """

    basis: ClassVar[str] = "channel"
    pooled: ClassVar[bool] = False

    estimator: str = "ratio_of_means"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("patch.estimator", self.estimator, ESTIMATORS)

    @abstractmethod
    def operator(self, scale: Tensor) -> nn.Module:
        """The operator that applies a scale, `[hidden_size]` (or `[1]` where pooled) in `basis`."""

    def statistics(self) -> Sequence[Statistic]:
        """Magnitudes of every stream, where they suffice."""
        return (Magnitude(self.basis),) if self.estimator == "ratio_of_means" else ()

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """Estimate the scale at each site."""
        fitted = []
        for site, scale in zip(sites, self._scales(workspace, sites), strict=True):
            diagnostics = {
                "scale_mean": scale.mean().item(),
                "scale_std": scale.std(correction=0).item(),
                "scale_min": scale.min().item(),
                "scale_max": scale.max().item(),
            }
            fitted.append(PlacedOperator(site, self.operator(scale), diagnostics))
        return fitted

    def _scales(self, workspace: Workspace, sites: Sequence[Site]) -> list[Tensor]:
        if self.estimator == "mean_of_ratios":
            spans = [(site.interface.start, site.interface.end) for site in sites]
            ratios = [MagnitudeRatio(start, end, self.basis, self.pooled) for start, end in spans]
            return [result["ratio"] for result in workspace.collect(*ratios, description="fit")]
        magnitude = at_streams(workspace, Magnitude(self.basis), "magnitude", [site.interface for site in sites])
        if self.pooled:
            magnitude = {stream: rows.sum(dim=-1, keepdim=True) for stream, rows in magnitude.items()}
        return [ratio(magnitude[site.interface.end], magnitude[site.interface.start]) for site in sites]


def at_streams(
    workspace: Workspace, statistic: Statistic, name: str, interfaces: Sequence[Interface]
) -> dict[float, Tensor]:
    """Rows of a statistic with one for each stream, where interfaces begin and end.

    Args:
        workspace: Shows the streams.
        statistic: Has a row for each layer; for each sublayer where it is one of sublayers.
        name: Of its result.
        interfaces: Where they lie decides whether streams between attention and MLP are needed.
    """
    by_layer = all(interface.is_of_layers for interface in interfaces)
    rows = workspace.statistic(statistic if by_layer else statistic.of_sublayers())[name]
    step = 1 if by_layer else 2
    return {end: rows[int(step * end)] for one in interfaces for end in (one.start, one.end)}
