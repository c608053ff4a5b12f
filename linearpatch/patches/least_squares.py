"""What the least-squares patches share: the settings, the closed-form solution, the choice of the ridge."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linearpatch.calibration.gram import PairGram
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import NumericsError, require_choice, require_number
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import PlacedOperator, Site
from linearpatch.patches.patch import Patch
from linearpatch.patches.penalty import Penalty, best_penalty
from linearpatch.registry import identity, name_of
from linearpatch.storage.cache import Entry

log = logging.getLogger(__name__)

DRAFT_RIDGE = 1e-4  # where one that is chosen has a stand-in
WEIGHTINGS = ("none", "capped", "relative")


@dataclass(frozen=True)
class Solution:
    """x ↦ x W + b, in fp64.

    Attributes:
        matrix: W, `[D, D]`, or as many rows as x has entries.
        bias: b, `[D]`, where there is one.
        gain: How much its differences between tokens were enlarged (`unshrunk`).
    """

    matrix: Tensor
    bias: Tensor | None = None
    gain: float = 1.0


@dataclass(frozen=True)
class Sums:
    """What a fit is solved from.

    Attributes:
        spec: Which sums of products.
        gram: Those of the tokens that are fitted on.
        check: Those of held-out tokens, where a ridge or a gain follows from them.
    """

    spec: PairGram
    gram: Mapping[str, Tensor]
    check: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class LeastSquaresPatch(Patch):
    """Base of the patches that minimise Σ w ‖x W + b − y‖² + λ ‖W − W₀‖², solved from Gram matrices in fp64.

    W₀ leaves the stream as it is.

    Attributes:
        ridge: λ as a fraction of the mean of the diagonal of Σ w xᵀx. At 0 the map is free. `auto`: that with the
            lowest error Σ w ‖x W + b − y‖² on held-out calibration tokens, at each interface (`patches.penalty`); where
            none is better than W₀, the fit is W₀.
        weighting: Of tokens. `none`: all count alike, and those of massive norm own the fit. `capped`: a token counts
            at most as one of three times its block's median norm past the interface. `relative`: w is 1 over the
            squared norm there. Whatever reads the stream normalises it first, so that an error matters by its share of
            the token's norm.
    """

    version: ClassVar[int] = 2  # of what `auto` and `matched` are

    first: ClassVar[Penalty] = Penalty(1e-3)  # that `auto` tries
    larger: ClassVar[Sequence[float]] = (1e3, 1e5)  # times the ridge as set: what it is compared with

    ridge: Any = 1e-6  # a number or `auto`
    weighting: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("patch.ridge", self.ridge, "auto")
        require_choice("patch.weighting", self.weighting, WEIGHTINGS)

    @property
    def needs_held_out(self) -> bool:
        """A ridge is chosen on tokens that the map wasn't fitted to."""
        return bool(self.ridge == "auto")

    @property
    def penalty(self) -> Penalty:
        """As set; of `auto`, where its search begins."""
        return self.first if self.ridge == "auto" else Penalty(self.ridge)

    def draft(self) -> Patch:
        """With a ridge and a gain that need no choice."""
        settings: dict[str, Any] = {"ridge": DRAFT_RIDGE} if self.ridge == "auto" else {}
        if self.matches_gain:
            settings["gain"] = 1
        return replace(self, sequential=False, **settings)

    def simpler(self) -> Mapping[str, Patch]:
        """With larger ridges; where there is a gain, without it, too."""
        simpler: dict[str, Patch] = {}
        plain, prefix = self, ""
        if getattr(self, "gain", 1) != 1:
            plain, prefix = replace(self, gain=1), "gain=1, "  # type: ignore[call-arg]
            simpler["gain=1"] = plain
        if self.ridge != "auto":
            ridges = [factor * max(self.ridge, type(self).ridge) for factor in self.larger]
            simpler |= {f"{prefix}ridge={ridge:.3g}": replace(plain, ridge=ridge) for ridge in ridges}
        return simpler

    def unknowns(self, decoder: Decoder) -> int:
        """A row of W for each channel of the stream."""
        return decoder.hidden_size

    @property
    def matches_gain(self) -> bool:
        """Whether it has a gain and that is measured; not all have one."""
        return getattr(self, "gain", 1) == "matched"

    @property
    def uses_held_out(self) -> bool:
        """A matched gain is measured on them, too."""
        return super().uses_held_out or self.matches_gain

    def interface_statistics(self, sites: Sequence[Site]) -> Sequence[PairGram]:
        """The sums of products at each site."""
        return [self.gram(group[0]) for group in self.together(sites)]

    def check_statistics(self, sites: Sequence[Site]) -> Sequence[PairGram]:
        """The same on held-out tokens, where a ridge or a gain follows from them."""
        return self.interface_statistics(sites) if self.ridge == "auto" or self.matches_gain else ()

    @abstractmethod
    def gram(self, site: Site) -> PairGram:
        """The sums of products that the fit at a site needs."""

    @abstractmethod
    def regression(self, gram: Mapping[str, Tensor], penalty: Penalty) -> Solution:
        """The map of the rows x of `gram` that least squares gives; its error on other tokens decides the ridge.

        Raises:
            NumericsError: there is no unique solution.
        """

    @abstractmethod
    def operators(
        self, gram: Mapping[str, Tensor], penalty: Penalty, check: Mapping[str, Tensor] | None = None
    ) -> tuple[list[nn.Module], Solution]:
        """Operators for the sites that are fitted together, and what they come to: a map of the rows x of `gram`.

        Args:
            gram: Sums of products of the tokens that are fitted on.
            penalty: Holds the map back.
            check: Sums of products of held-out tokens, where there are any; a gain is matched on them.

        Raises:
            NumericsError: there is no unique solution.
        """

    def prior(self, gram: Mapping[str, Tensor]) -> Tensor:
        """W₀: as many rows as x has entries, without the 1 of a b."""
        return torch.eye(gram["xy"].shape[1]).to(gram["xy"])

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """Gather sums of products at the sites in one pass up to the deepest, and solve.

        Raises:
            NumericsError: there is no unique solution.
        """
        groups = self.together(sites)
        specs = [self.gram(group[0]) for group in groups]
        return [
            placed
            for group, sums in zip(groups, self.sums(workspace, specs), strict=True)
            for placed in self.solved(group, sums, self.penalty_for(workspace, sums))
        ]

    def sums(self, workspace: Workspace, specs: Sequence[PairGram]) -> Iterator[Sums]:
        """Sums of products from one pass over the tokens, and from one over held-out ones where they decide."""
        grams = workspace.collect(*specs, description="fit")
        checks: Sequence[Mapping[str, Tensor] | None] = [None] * len(specs)
        if self.ridge == "auto" or (self.matches_gain and workspace.has_held_out):
            checks = workspace.on_held_out().collect(*specs, description="held-out tokens")
        device = solving_device(workspace.decoder)
        for spec, gram, check in zip(specs, grams, checks, strict=True):
            yield Sums(spec, _on(gram, device), check and _on(check, device))

    def solved(
        self, sites: Sequence[Site], sums: Sums, penalty: Penalty, *, error_before: float | None = None
    ) -> list[PlacedOperator]:
        """Operators at sites that are fitted together, and what is known of their fit.

        Args:
            sites: Where they act.
            sums: What they are solved from.
            penalty: Holds the fit back.
            error_before: The error without a patch; None: that of W₀.

        Raises:
            NumericsError: there is no unique solution.
        """
        gram, check = sums.gram, sums.check
        with self.solvable(sites, gram):
            operators, solution = self.operators(gram, penalty, check)
        diagnostics = {
            "error_before": relative_error(Solution(self.prior(gram)), gram) if error_before is None else error_before,
            "error_after": relative_error(solution, gram),
            "tokens": gram["count"].item(),
            "ridge": penalty.ridge,
            "gain": solution.gain,
        }
        if penalty.stream is not None:
            diagnostics["stream_ridge"] = penalty.stream
        if check is not None:
            diagnostics["error_held_out"] = relative_error(solution, check)
        warning = ""
        if gram["count"] <= (unknowns := self.num_unknowns(gram)):
            warning = (
                f"patch={name_of(self)}: {int(gram['count'])} tokens for {unknowns} unknowns per channel; the fit "
                "will overfit them and may do harm on other text. Use more calibration text "
                f"(calibration.num_blocks){'' if self.ridge == 'auto' else ', or set patch.ridge=auto'}."
            )
        return [
            PlacedOperator(site, operator.cpu(), diagnostics, warning)
            for site, operator in zip(sites, operators, strict=True)
        ]

    def num_unknowns(self, gram: Mapping[str, Tensor]) -> int:
        """How many numbers a fit solves for, for each output channel."""
        return len(gram["xx"])

    @contextmanager
    def solvable(self, sites: Sequence[Site], gram: Mapping[str, Tensor]) -> Iterator[None]:
        """While open, a system without a unique solution is reported with its place and what helps."""
        try:
            yield
        except NumericsError as error:
            raise NumericsError(
                f"The least-squares fit at {sites[0].interface} has no unique solution: "
                f"{int(gram['count'])} tokens for {len(gram['xx'])} unknowns per channel, patch.ridge={self.ridge}. "
                "Use more calibration text (calibration.num_blocks) or a larger patch.ridge."
            ) from error

    def penalty_for(self, workspace: Workspace, sums: Sums) -> Penalty:
        """As set, or the best one; cached, since fits that differ in their gain alone share it."""
        if self.ridge != "auto":
            return self.penalty
        assert sums.check is not None
        gram, check = sums.gram, sums.check

        def compute() -> Entry:
            best = self._best_penalty(gram, check)
            return Entry(facts={name: value if value != inf else "inf" for name, value in asdict(best).items()})

        same = {**identity(self), "gain": None}
        asked = {"held_out": workspace.held_out.hash, "patch": same, "gram": repr(sums.spec)}
        facts = workspace.cache.get("penalty", {**workspace.key, **asked}, compute).facts
        return Penalty(**{name: inf if value == "inf" else value for name, value in facts.items()})

    def _best_penalty(self, gram: Mapping[str, Tensor], check: Mapping[str, Tensor]) -> Penalty:
        """The penalty with the lowest error on other tokens; infinite where W₀ has a lower one."""

        def error(penalty: Penalty) -> float:
            return relative_error(self.regression(gram, penalty), check)

        best, lowest = best_penalty(self.penalty, error)
        nothing = Penalty(inf, None if best.stream is None else inf)
        return best if lowest <= error(nothing) else nothing


def _on(sums: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in sums.items()}


def solving_device(decoder: Decoder) -> torch.device:
    """Where fits are solved: on the model's GPU, whose fp64 is faster than a CPU's at large widths, else on the CPU."""
    device = decoder.input_device
    return device if device.type == "cuda" else torch.device("cpu")  # other accelerators have no fp64


def penalty_of(gram: Mapping[str, Tensor], ridge: float) -> float:
    """λ: a fraction of the mean of the diagonal of Σ w xᵀx, the 1 of a b left out."""
    size = gram["xy"].shape[1]
    return ridge * gram["xx"].diagonal()[:size].mean().item()


def energies(xx: Tensor) -> Tensor:
    """Σ w x² of each entry of x; an entry that is never used counts a millionth of the mean, so that it can be held."""
    diagonal = xx.diagonal()
    return diagonal.clamp_min(1e-6 * diagonal.mean().item())


def solve(gram: Mapping[str, Tensor], penalty: float | Tensor, prior: Tensor) -> Solution:
    """The minimiser of Σ w ‖x W + b − y‖² + ‖Λ½ (W − W₀)‖²; there is a b where the rows x end in a 1.

    Args:
        gram: Sums of products.
        penalty: The diagonal of Λ, or λ for all of it; b isn't held back.
        prior: W₀.

    Raises:
        NumericsError: there is no unique one.
    """
    xx, xy, mean_x, mean_y = centred(gram)
    penalty = torch.as_tensor(penalty).to(xx).expand(len(xx))
    if penalty.isinf().any():
        return Solution(prior)
    matrix = torch.cholesky_solve(xy + penalty[:, None] * prior, factor_of(xx, penalty))
    return Solution(matrix, None if mean_x is None or mean_y is None else mean_y - mean_x @ matrix)


def unshrunk(
    solution: Solution, gram: Mapping[str, Tensor], gain: float | str, check: Mapping[str, Tensor] | None = None
) -> Solution:
    """The map with its differences from the mean enlarged: x ↦ ȳ + g (x W + b − ȳ).

    What a least-squares map can't foresee it leaves out, so that its outputs vary less from token to token than the
    stream that they stand for, around the same mean.

    Args:
        solution: A map with the b that was solved for, so that the mean of its outputs is ȳ.
        gram: The sums of products that it was solved from; rows y are the stream past the interface.
        gain: g, or `matched`: the g with which outputs vary as much as rows y do.
        check: Sums of products of held-out tokens, on which that is measured where there are any: on the tokens that
            it was fitted on a map follows noise, too, and varies more.
    """
    _, _, mean_x, mean_y = centred(gram)
    assert mean_x is not None
    assert mean_y is not None
    factor = matched_gain(solution, check or gram) if gain == "matched" else float(gain)
    matrix = factor * solution.matrix
    return Solution(matrix, mean_y - mean_x @ matrix, factor)


def matched_gain(solution: Solution, gram: Mapping[str, Tensor]) -> float:
    """The g with which the outputs of a map vary as much from token to token as the rows y do."""
    xx, _, _, mean_y = centred(gram)
    assert mean_y is not None
    target = gram["yy"] - gram["xx"][-1, -1] * mean_y.square().sum()
    return float((target / (solution.matrix * (xx @ solution.matrix)).sum()).sqrt())


def factor_of(xx: Tensor, penalty: float | Tensor) -> Tensor:
    """The Cholesky factor of Σ w xᵀx + Λ, Λ diagonal.

    Raises:
        NumericsError: it isn't positive definite.
    """
    found = torch.linalg.cholesky_ex(xx + torch.as_tensor(penalty).to(xx).expand(len(xx)).diag())
    if found.info:
        raise NumericsError("The sums of products are singular.")
    factor: Tensor = found.L
    return factor


def centred(gram: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Σ w xᵀx, Σ w xᵀy and the weighted means of x and y; the sums are about those means where a b takes them up."""
    xx, xy = gram["xx"], gram["xy"]
    if not gram["bias"]:
        return xx, xy, None, None
    size = len(xx) - 1
    mean_x, mean_y = xx[size, :size] / xx[size, size], xy[size] / xx[size, size]
    return (
        xx[:size, :size] - xx[size, size] * mean_x[:, None] * mean_x,
        xy[:size] - xx[size, size] * mean_x[:, None] * mean_y,
        mean_x,
        mean_y,
    )


def relative_error(solution: Solution, gram: Mapping[str, Tensor]) -> float:
    """Σ w ‖x W + b − y‖² from the Gram matrices, over the weighted energy of the stream past the interface."""
    bias = solution.bias if solution.bias is not None else torch.zeros_like(solution.matrix[0])
    matrix = torch.cat([solution.matrix, bias[None]]) if gram["bias"] else solution.matrix
    error = gram["yy"] - 2 * (matrix * gram["xy"]).sum() + (matrix * (gram["xx"] @ matrix)).sum()
    return float(error / gram["energy"])
