"""EvoPress: layers by evolution, whole sets judged by how far the model's predictions move."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

from linearpatch.calibration.fitness import MEASURES, Fitness, Layers
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_choice, require_range, require_seed
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import rankings
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import component, identity
from linearpatch.results.scores import LayerScores
from linearpatch.runtime.progress import steps
from linearpatch.storage.cache import Entry

log = logging.getLogger(__name__)

TITLES = {"divergence": "KL divergence from dense", "loss": "NLL"}
DRAWS = 50  # of a mutation that gives a set which is there already, before there are fewer offspring


@component("pruner", "evolution", title="EvoPress")
@dataclass(frozen=True)
class Evolution(Pruner):
    """Sets of layers that mutate; the fittest by KL divergence from the dense model is the next parent.

    EvoPress (Sieberling et al. 2024), algorithm 1: a generation has `offspring` copies of the parent in each of which
    one removed layer, sometimes two or three, changes places with a kept one (a level switch), so that the number of
    layers stays. They are judged in steps on more and more tokens; the last step judges the parent, too, which only a
    fitter set replaces. Unlike a greedy search it can take back what it removed.

    Attributes:
        generations: How many; null: n (L − n) / 1.5, as the authors' for layers.
        max_layer_forwards: No generation begins once so many layers have been run, each counted once a batch; null: no
            limit. So searches can be compared at equal cost.
        offspring: Sets in a generation.
        survivors: Sets that are left after each step of a generation; the last is 1.
        shares: Shares of the tokens on which each step judges, drawn again for each generation.
        most_swaps: A mutation swaps as many pairs of layers as the lower of two draws from 1 to this.
        start: Pruners whose choices, with `initial` random sets, are where it starts: the fittest is the first parent.
        initial: Random sets at the start.
        measure: `divergence` (KL from the dense model, mean over tokens) or `loss` (of the next token).
        patched: Repair each set by the run's patch, or what stands in for it in a search (`Patch.draft`), before it is
            judged; on held-out tokens, since patches are fitted on the others.
        seed: Of all draws; the YAML takes the run's.
    """

    generations: int | None = None
    max_layer_forwards: int | None = None
    offspring: int = 32
    survivors: list[int] = field(default_factory=lambda: [2, 1])
    shares: list[float] = field(default_factory=lambda: [0.0625, 1.0])
    most_swaps: int = 3
    start: list[str] = field(default_factory=list)
    initial: int = 16
    measure: str = "divergence"
    patched: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generations is not None:
            require_range("pruner.generations", self.generations, low=0)
        if self.max_layer_forwards is not None:
            require_range("pruner.max_layer_forwards", self.max_layer_forwards, low=1)
        require_range("pruner.offspring", self.offspring, low=1)
        require_range("pruner.most_swaps", self.most_swaps, low=1)
        require_range("pruner.initial", self.initial, low=0)
        require_choice("pruner.measure", self.measure, MEASURES)
        require_seed("pruner.seed", self.seed)
        for name in self.start:
            require_choice("pruner.start", name, rankings())
        if self.initial == 0 and not self.start:
            raise ConfigError("pruner.initial is 0, and pruner.start names no pruner. One of them must give a set.")
        for what, values in (("survivors", self.survivors), ("shares", self.shares)):
            if len(values) != len(self.shares) or not values:
                raise ConfigError(
                    f"pruner.survivors={self.survivors} and pruner.shares={self.shares} have to be equally long: "
                    "a number of sets and a share of the tokens for each step."
                )
            for value in values:
                require_range(f"pruner.{what}", value, low=0)
        if self.survivors[-1] != 1 or sorted(self.survivors, reverse=True) != self.survivors:
            raise ConfigError(f"pruner.survivors is {self.survivors}. Allowed: falling numbers, the last of them 1.")
        if not all(0 < share <= 1 for share in self.shares):
            raise ConfigError(f"pruner.shares is {self.shares}. Allowed: shares above 0, up to 1.")

    @property
    def needs_held_out(self) -> bool:
        """Where sets are repaired before they are judged."""
        return self.patched

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Evolve."""

        def compute() -> Entry:
            best, fitness, forwards = _EvolutionRun(self, workspace, n).run()
            log.info(
                "evolution: layers %s, %s %.4f, %d layer-forwards", list(best), self.measure, fitness[-1], forwards
            )
            return Entry(facts={"removed": list(best), "fitness": fitness})

        settings = {**asdict(self), "n": n, "version": self.version}
        start = [identity(self._starting(name)) for name in self.start]
        key: dict[str, Any] = {**workspace.key, "evolution": settings, "start": start}
        if self.patched:
            patch = identity(workspace.patch.draft())
            key |= {"held_out": workspace.held_out.hash, "patch": patch}
        facts = workspace.cache.get("evolution", key, compute).facts
        title = TITLES[self.measure] + (", patched" if self.patched else "")
        scores = LayerScores(title, "set", fitness=facts["fitness"])
        return Edit.of_layers(facts["removed"], scores=scores)

    def first_sets(self, workspace: Workspace, n: int, draws: random.Random) -> list[Layers]:
        """Where it starts: choices of other pruners, and random sets."""
        candidates = list(self.candidates(workspace.num_layers))
        chosen = [tuple(sorted(self._starting(name).select(workspace, n).removed_layers)) for name in self.start]
        drawn = [tuple(sorted(draws.sample(candidates, n))) for _ in range(self.initial)]
        return list(dict.fromkeys([*chosen, *drawn]))

    def num_generations(self, num_layers: int, n: int) -> int:
        """How many generations there are."""
        movable = len(self.candidates(num_layers))
        if n >= movable:
            return 0
        return int(n * (num_layers - n) / 1.5) if self.generations is None else self.generations

    def mutated(self, parent: Layers, candidates: Sequence[int], draws: random.Random) -> Layers:
        """A copy in which removed layers changed places with kept ones."""
        removed, kept = list(parent), [layer for layer in candidates if layer not in parent]
        swaps = min(draws.randint(1, self.most_swaps), draws.randint(1, self.most_swaps), len(removed), len(kept))
        out, into = draws.sample(removed, swaps), draws.sample(kept, swaps)
        return tuple(sorted({*removed, *into} - {*out}))

    def _starting(self, name: str) -> Pruner:
        return replace(rankings()[name](), protect_first=self.protect_first, protect_last=self.protect_last)


class _EvolutionRun:
    """One search: its draws, its parent and the tokens."""

    def __init__(self, settings: Evolution, workspace: Workspace, n: int) -> None:
        self.settings = settings
        self.draws = random.Random(settings.seed)
        self.candidates = list(settings.candidates(workspace.num_layers))
        self.generations = settings.num_generations(workspace.num_layers, n)
        self.first = settings.first_sets(workspace, n, self.draws)
        blocks = workspace.held_out if settings.patched else workspace.blocks
        repaired = workspace.candidate_edits.edits if settings.patched else None
        self.fitness = Fitness(
            workspace.decoder,
            blocks.ids,
            repaired or (lambda sets: [Edit.of_layers(layers) for layers in sets]),
            measure=settings.measure,
            parts=max(1, round(1 / min(settings.shares))),
            batch_size=workspace.batch_size,
            offload=workspace.offload_streams,
        )

    def run(self) -> tuple[Layers, list[float], int]:
        """The fittest set, the fitness of the best after each generation, and the layers run."""
        everything = range(self.fitness.num_parts)
        parent = self._fittest(self.first, 1, everything)[0]
        history = self.fitness.of([parent], everything)
        with steps("generations", self.generations) as on_step:
            for _ in range(self.generations):
                if self.fitness.layer_forwards >= (self.settings.max_layer_forwards or inf):
                    break
                parent = self._generation(parent)
                history += self.fitness.of([parent], everything)
                on_step()
        return parent, history, self.fitness.layer_forwards

    def _generation(self, parent: Layers) -> Layers:
        """The parent of the next generation."""
        self.fitness.set_base(parent)
        left = self._offspring(parent)
        last = len(self.settings.shares) - 1
        for step, (count, share) in enumerate(zip(self.settings.survivors, self.settings.shares, strict=True)):
            number = max(1, round(share * self.fitness.num_parts))
            parts = sorted(self.draws.sample(range(self.fitness.num_parts), number))
            rivals = [parent, *left] if step == last else left  # the parent first: it wins where nothing is fitter
            left = self._fittest(rivals, count, parts)
        return left[0]

    def _offspring(self, parent: Layers) -> list[Layers]:
        offspring: dict[Layers, None] = {}
        for _ in range(DRAWS * self.settings.offspring):
            if len(offspring) == self.settings.offspring:
                break
            offspring.setdefault(self.settings.mutated(parent, self.candidates, self.draws))
        return list(offspring)

    def _fittest(self, sets: Sequence[Layers], count: int, parts: Sequence[int]) -> list[Layers]:
        values = dict(zip(sets, self.fitness.of(sets, parts), strict=True))
        return sorted(values, key=lambda layers: values[layers])[:count]
