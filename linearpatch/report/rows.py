"""Rows to compare: one for each model that was measured, whichever runs measured it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from linearpatch.results.metric import Metric, Retained
from linearpatch.results.record import Record
from linearpatch.results.settings import CHOSEN_FOR, distinguishing_settings, relevant
from linearpatch.results.stages import STAGES

PATCHES = ("none", "scalar", "diag", "rotate", "lstsq", "mlp_lstsq")  # from the plainest on; others follow


@dataclass(frozen=True)
class Variant:
    """A model that was measured, but for the seed.

    Attributes:
        model: Name of the dense model.
        num_layers: That it has.
        stage: `dense`, `pruned`, `patched` or `distilled`.
        num_removed: Layers or sublayers that were removed; of a narrowed model, layers with the parameters it lost.
        pruner: Empty for dense, as are the next two. Followed by `attention`, `mlp` or `sublayer` where it chose these.
        patch: `none` at stage pruned.
        distill: `none` but at stage distilled.
        settings: What else matters to this stage, by name; after `with_distinguishing_settings`, those
            in which rows differ that are otherwise alike.
    """

    model: str
    num_layers: int
    stage: str
    num_removed: int = 0
    pruner: str = ""
    patch: str = ""
    distill: str = ""
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def settings_text(self) -> str:
        """The settings in words, without their groups where that is clear.

        >>> Variant("m", 8, "patched", settings=(("corpus.name", "c4"), ("patch.ridge", "0.1"))).settings_text
        'corpus=c4, ridge=0.1'
        """
        names = [name.removesuffix(".name") for name, _ in self.settings]
        last = [name.rpartition(".")[2] for name in names]
        short = [end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)]
        return ", ".join(f"{name}={value}" for name, (_, value) in zip(short, self.settings, strict=True))

    @property
    def order(self) -> tuple[Any, ...]:
        """Where tables put it: by model, then by layers removed, pruner, patch."""
        known = PATCHES.index(self.patch) if self.patch in PATCHES else len(PATCHES)
        return self.model, self.num_removed, self.pruner, known, self.patch, STAGES.index(self.stage), self.settings


@dataclass(frozen=True)
class Row:
    """What is known of a model with one seed.

    Attributes:
        variant: Which model it is.
        seed: Of its runs.
        removed: The layers it lacks, in the order of removal; where sublayers go, all by their names.
        metrics: By name.
        retained: Retained performance, by definition and average.
        num_parameters: That it has.
        packages: Versions of what measured it, by name.
        runs: Ids of the runs that measured it, the newest first.
        settings: All that matter to its stage, by dotted name.
        names: All names of the dense model: what the record calls it, and the choice of the configuration.
    """

    variant: Variant
    seed: int
    removed: tuple[int | str, ...]
    metrics: Mapping[str, Metric]
    retained: Mapping[str, Mapping[str, Retained]]
    num_parameters: int
    packages: Mapping[str, str]
    runs: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()

    def agrees(self, other: Row) -> bool:
        """Whether what both measured was measured in the same way on the same data."""
        both = self.metrics.keys() & other.metrics.keys()
        return all(self.metrics[name].is_comparable(other.metrics[name]) for name in both)


def rows_of_run(record: Record) -> Iterator[Row]:
    """One row for each stage that a run measured; settings are all that matter to it."""
    model, pruning, fitted = record.require_edit()
    removed: tuple[int | str, ...] = tuple(pruning.removed or pruning.removed_layers)
    packages = record.environment.packages
    dense = Variant(model.name, model.num_layers, "dense")
    for stage in (stage for stage in STAGES if stage in record.metrics):
        variant = replace(dense, stage=stage, settings=tuple(sorted(relevant(record, stage).items())))
        if stage != "dense":
            training = record.distillation if stage == "distilled" else None
            variant = replace(
                variant,
                num_removed=record.size,
                pruner=f"{pruning.method} {record.unit}" if pruning.removed else pruning.method,
                patch="none" if stage == "pruned" else fitted.method,
                distill=training.method if training else "none",
            )
        yield Row(
            variant,
            0 if stage == "dense" else record.seed,
            () if stage == "dense" else removed,
            record.metrics[stage],
            record.retained.get(stage, {}),
            record.num_parameters(stage),
            {name: packages[name] for name in ("torch", "transformers") if name in packages},
            (record.run_id,),
            dict(variant.settings),
            frozenset({model.name, record.config.get("choices", {}).get("model", model.name)}),
        )


def merged(rows: Iterable[Row]) -> list[Row]:
    """Rows with each model once: what several runs measured of it together, unless they measured it differently.

    Args:
        rows: Of all runs, those of the newest first.
    """
    kept: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        same = kept.setdefault((row.variant, row.seed, frozenset(row.removed)), [])
        at = next((at for at, other in enumerate(same) if other.agrees(row)), None)
        if at is None:
            same.append(row)
        else:
            same[at] = _joined(same[at], row)
    return [row for same in kept.values() for row in same]


def with_distinguishing_settings(rows: Sequence[Row]) -> list[Row]:
    """Rows whose settings are those alone in which rows of the same model, pruner and patch differ, at any size.

    Of the texts and how much of them was read, also those in which rows of other pruners and patches differ: what is
    compared must not hide that. Where the pruner foresaw a patch, rows are compared with those of the same one; its
    name is always shown.
    """
    alike: dict[tuple[Any, ...], list[Row]] = {}
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        foreseen = dict(row.variant.settings).get(CHOSEN_FOR)
        alike.setdefault((replace(row.variant, settings=(), num_removed=0), foreseen), []).append(row)
        if row.variant.stage != "dense":
            by_model.setdefault(row.variant.model, []).append(row)
    texts = {model: _distinguishing_texts(own) for model, own in by_model.items()}
    distinct = []
    for group in alike.values():
        shown = {CHOSEN_FOR, *distinguishing_settings([dict(row.variant.settings) for row in group])}
        for row in group:
            names = shown | texts.get(row.variant.model, set())
            settings = tuple((name, value) for name, value in row.variant.settings if name in names)
            distinct.append(replace(row, variant=replace(row.variant, settings=settings)))
    return sorted(distinct, key=lambda row: (*row.variant.order, row.seed))


def _distinguishing_texts(rows: Sequence[Row]) -> set[str]:
    """Settings of the calibration text in which some rows differ."""
    groups = ("corpus", "calibration")
    texts = [{k: v for k, v in row.variant.settings if k.partition(".")[0] in groups} for row in rows]
    return set(distinguishing_settings(texts))


def _joined(newer: Row, older: Row) -> Row:
    definitions = [*newer.retained, *(name for name in older.retained if name not in newer.retained)]
    return replace(
        newer,
        metrics={**older.metrics, **newer.metrics},
        retained={name: {**older.retained.get(name, {}), **newer.retained.get(name, {})} for name in definitions},
        runs=(*newer.runs, *(run for run in older.runs if run not in newer.runs)),
        names=newer.names | older.names,
    )
