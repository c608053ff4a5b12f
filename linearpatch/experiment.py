"""An experiment as a value: components and numbers, the root of the configuration."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from linearpatch.budgets.budget import Budget, Limit, sizes_of
from linearpatch.checkpoint.checks import check_config
from linearpatch.contradictions import check_settings
from linearpatch.data.blocks import BlockSpec
from linearpatch.data.corpus import Corpus
from linearpatch.data.reader import Calibration, DistillationText, EvaluationText, Reader
from linearpatch.distillation.training import Distillation, Training
from linearpatch.evaluation.evaluation import Evaluation
from linearpatch.models.decoder import Decoder, context_length
from linearpatch.models.model import Model
from linearpatch.models.units import LAYER, interfaces_of
from linearpatch.patches.patch import Patch
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import identity, name_of
from linearpatch.results.stages import STAGES
from linearpatch.runtime.memory import with_half_batch
from linearpatch.storage.cache import canonical, default_cache_dir
from linearpatch.storage.stamps import stamps
from linearpatch.tracking.tracker import Tracker

log = logging.getLogger(__name__)

MOST_CHARACTERS = 100  # of a model's name in a run id, which is the name of a folder


@dataclass(frozen=True)
class Experiment:
    """One run: a model loses layers, is patched, and is measured at each stage.

    Attributes:
        model: What is pruned.
        corpus: The text that every purpose reads a split of, unless it has a corpus of its own.
        calibration: How layers are chosen and patches fitted.
        evaluation: What models are measured on.
        pruner: Chooses the layers.
        num_pruned_layers: How many layers go; null where a budget decides that.
        num_pruned: How many units go, where `pruner.unit` isn't a layer; null counts layers.
        budget: Decides how many layers go.
        patch: Bridges the interfaces.
        distill: Refines the patches.
        distillation: The text that they are trained on.
        eval: Measurements by name.
        stages: The models that are measured.
        tasks: Names of tasks for `eval=[tasks]`.
        missing_data: What evaluations do about tasks whose data can't be had: `error` or `skip`.
        tracker: Where the record is shown beside the run's folder, by name.
        save_model: Write the pruned, patched model to the run's folder, as `model/`.
        save_format: `auto`, `plain`, `custom`, `adapter`, `lora`, `gguf` or `nemotron_nas`; see
            `checkpoint.saving.save_checkpoint`.
        gguf_type: Of the matrices in a GGUF file: `f32`, `f16`, `bf16` or `q8_0`; `auto` is the model's own.
        push_to_hub: Repository on the hub that gets a copy of `model/`, such as `me/smaller-model`; null: none.
        seed: Of every random choice.
        output_dir: Folder of the run; null is `outputs/<run_id>`. In a sweep, the folder of their folders.
        datasets_dir: Local copies of data sets, read in place of the hub.
        cache_dir: What is kept between runs; null is LINEARPATCH_CACHE or the user's cache.
        group: Label that runs share; where none is given, the name of their experiment or sweep.
        force: Recompute everything, whatever records and the cache hold.
        fail_fast: In a sweep, stop all runs when one fails, in place of going on with the others.
    """

    model: Model = MISSING
    corpus: Corpus = MISSING
    calibration: Calibration = MISSING
    evaluation: EvaluationText = field(default_factory=EvaluationText)
    pruner: Pruner = MISSING
    num_pruned_layers: int | None = 5
    num_pruned: int | None = None
    budget: Budget = MISSING
    patch: Patch = MISSING
    distill: Distillation = MISSING
    distillation: DistillationText = field(default_factory=DistillationText)
    eval: dict[str, Any] = field(default_factory=dict)
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    tasks: list[str] = field(default_factory=list)
    missing_data: str = "error"
    tracker: dict[str, Any] = field(default_factory=dict)
    save_model: bool = False
    save_format: str = "auto"
    gguf_type: str = "auto"
    push_to_hub: str | None = None
    seed: int = 0
    output_dir: str | None = None
    datasets_dir: str | None = None
    cache_dir: str | None = None
    group: str | None = None
    force: bool = False
    fail_fast: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def training(self) -> Training | None:
        """The distillation, where there is one."""
        return self.distill if isinstance(self.distill, Training) else None

    @property
    def limit(self) -> Limit | None:
        """What decides how many layers go, where a number doesn't."""
        return self.budget if isinstance(self.budget, Limit) else None

    @property
    def format(self) -> str | None:
        """That of the checkpoint; None where none is saved."""
        return self.save_format if self.save_model else None

    @property
    def has_mixed_layers(self) -> bool:
        """Whether some layers lose a sublayer, or patches may be layers of their own."""
        return self.patch.adds_layers or self.pruner.unit != LAYER

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """The measurements asked for; presets may hold settings of others, which stay unused."""
        return {name: chosen for name, chosen in self.eval.items() if isinstance(chosen, Evaluation)}

    @property
    def trackers(self) -> dict[str, Tracker]:
        """What follows the run; presets may hold settings of others, which stay unused."""
        return {name: chosen for name, chosen in self.tracker.items() if isinstance(chosen, Tracker)}

    @property
    def cache_path(self) -> Path:
        """Folder of the cache."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else default_cache_dir()

    @property
    def patch_seen(self) -> Patch | None:
        """What of the patch the choice of layers depends on."""
        chooser = self.pruner.chooser
        if not chooser.sees_patches:
            return None
        return self.patch if chooser.sees_whole_patches else self.patch.draft()

    @property
    def num_units(self) -> int | None:
        """How many layers or sublayers go; None where a budget decides that."""
        return None if self.limit else self.pruner.number(self.num_pruned_layers, self.num_pruned)

    @property
    def num_held_out(self) -> int:
        """Calibration blocks on which nothing is fitted."""
        return self.calibration.num_held_out(
            self.pruner.needs_held_out or self.patch.needs_held_out or self.budget.needs_held_out
        )

    def calibration_blocks(self, unknowns: int = 0) -> BlockSpec:
        """The cut of the calibration text; where its size depends on the patch, as much of it as there is.

        Args:
            unknowns: Of the patch's fit, for each output channel; 0 where that isn't known yet.
        """
        spec = self.calibration.sized(unknowns).blocks(self.seed)
        return replace(spec, short_text="adapt") if self.calibration.is_sized_by_patch else spec

    @property
    def spares_blocks(self) -> bool:
        """Whether a few blocks beside those for calibration are held out to compare the patch with none.

        Runs with and without a patch read the same blocks, unless the patch decides how many there are
        (`calibration.num_blocks=auto`).
        """
        return self.patch.uses_held_out and self.calibration.held_out_blocks is None and not self.num_held_out

    @property
    def readers(self) -> list[Reader]:
        """All texts that the run reads, each for its purpose."""
        readers = [self.calibration_reader, *([self.distillation_reader] if self.training is not None else [])]
        return readers + [reader for one in self.evaluations.values() for reader in one.readers(self.evaluation_reader)]

    @property
    def calibration_reader(self) -> Reader:
        """The text for choosing layers and fitting patches."""
        return self._reader("calibration", self.calibration.corpus)

    @property
    def distillation_reader(self) -> Reader:
        """The text on which patches are trained."""
        return self._reader("distillation", self.distillation.corpus)

    @property
    def evaluation_reader(self) -> Reader:
        """The text for measuring."""
        return self._reader("evaluation", self.evaluation.corpus)

    @property
    def run_id(self) -> str:
        """Name of the run: readable choices and a hash of all that makes the pruned, patched model."""
        makes = {
            "model": identity(self.model),
            "calibration": identity(replace(self.calibration, corpus=self.calibration_reader.corpus)),
            "pruner": identity(self.pruner),
            "num_pruned_layers": self.num_units,
            "patch": identity(self.patch),
            "distill": identity(self.distill),
            "seed": self.seed,
        }
        if self.training is not None:
            own = self.distillation_reader.corpus
            makes["distillation"] = identity(replace(self.distillation, corpus=own))
        label = self.model.label[:MOST_CHARACTERS]
        unit = "" if self.pruner.unit == LAYER else f"-{self.pruner.unit}"
        size: int | str | None = self.num_units
        if self.limit is not None:
            makes["budget"], size = identity(self.limit), self.limit.label
        chosen = f"{label}-{name_of(self.pruner)}{unit}-{size}-{name_of(self.patch)}"
        return f"{chosen}-{digest(makes)}"

    @property
    def required_results(self) -> dict[str, str]:
        """What a record must answer to be complete: a digest for each measurement of each stage and the checkpoint."""
        read = (self.model, self.corpus, self.calibration, self.evaluation, self.distillation, self.eval)
        files = stamps([self.datasets_dir, *map(_plain, read)])
        asked = {
            f"{stage}/{name}": digest([files, measured])
            for stage in self.measured_stages
            for name, measured in self.measured.items()
        }
        if self.save_model:
            kind = [self.gguf_type] if self.save_format == "gguf" else []
            asked["checkpoint"] = digest([files, self.save_format, self.push_to_hub, *kind])
        return asked

    @property
    def measured_stages(self) -> list[str]:
        """The stages that are measured; one that this run doesn't have is replaced by the stage before it."""
        missing = {"patched": name_of(self.patch) == "none", "distilled": self.training is None}
        asked = set()
        for stage in self.stages:
            up_to = STAGES[: STAGES.index(stage) + 1]
            asked.add([one for one in up_to if not missing.get(one)][-1])
        return [stage for stage in STAGES if stage in asked]

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """What makes the result of each evaluation beside the model."""
        corpus = identity(self.evaluation_reader.corpus)
        return {
            name: {"corpus": corpus, "missing_data": self.missing_data, **identity(evaluation)}
            for name, evaluation in self.evaluations.items()
        }

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen of each group, by name."""
        return {
            "model": self.model.label,
            "corpus": self.corpus.name,
            "pruner": name_of(self.pruner),
            "patch": name_of(self.patch),
            "distill": name_of(self.distill),
        }

    def for_model(self, decoder: Decoder) -> Experiment:
        """The same with the patch that is fitted to a model (`Patch.for_model`)."""
        patch = self.patch.for_model(decoder)
        if patch is self.patch:
            return self
        if name_of(patch) != name_of(self.patch):
            log.info(
                "patch=%s in place of %s, which has nothing to fit in models of this family", name_of(patch),
                name_of(self.patch),
            )  # fmt: skip
        return replace(self, patch=patch)

    def check_model(self, config: Any) -> None:
        """Reject what can't be done with a model, as far as its configuration shows that.

        Args:
            config: The model's, as transformers has it.

        Raises:
            ConfigError: so many layers can't be removed, or not these with this patch; a rank is too large; or
                blocks are longer than what the model reads.
        """
        text = config.get_text_config(decoder=True)
        num_layers, hidden_size = text.num_hidden_layers, getattr(text, "hidden_size", None)
        if self.save_model:
            check_config(config, self.save_format, mixed_layers=self.has_mixed_layers)
        size = sizes_of(self.pruner, num_layers)[-1] if self.num_units is None else self.num_units
        self.pruner.check(num_layers, size)
        for reader in self.readers:
            reader.corpus.check_model(config)
        specs = [self.calibration_blocks(), *(evaluation.spec(name) for name, evaluation in self.evaluations.items())]
        if self.training is not None:
            specs.append(self.distillation.blocks(self.seed))
        longest = context_length(config)
        for spec in specs:
            if spec is not None and longest is not None:
                spec.check_length(longest)
        known = self.pruner.known_choice(num_layers, size)
        if known is not None:
            self.patch.place(interfaces_of(known))
        if hidden_size is not None:
            self.patch.check_size(hidden_size)
            if self.training is not None:
                self.training.check_size(hidden_size)

    def with_half_batches(self) -> Experiment | None:
        """The same with half of every batch size, for less memory; None where all are one.

        A step of distillation keeps its number of sequences.
        """
        smaller = replace(
            self,
            calibration=with_half_batch(self.calibration),
            eval={name: with_half_batch(chosen) for name, chosen in self.eval.items()},
            distill=with_half_batch(self.distill),
        )
        return None if smaller == self else smaller

    def folder(self, *, in_sweep: bool = False) -> Path:
        """Where the run goes."""
        if self.output_dir is None:
            return Path("outputs") / self.run_id
        base = Path(self.output_dir).expanduser()
        return base / self.run_id if in_sweep else base

    def _reader(self, purpose: str, own: Corpus | None) -> Reader:
        datasets_dir = Path(self.datasets_dir).expanduser() if self.datasets_dir else None
        return Reader(own or self.corpus, purpose, datasets_dir, key=f"{purpose}.corpus" if own else "corpus")


def digest(value: Any) -> str:
    """A short name for a value: 8 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:8]


def _plain(value: Any) -> Any:
    """A component's settings, or those of components by name."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
