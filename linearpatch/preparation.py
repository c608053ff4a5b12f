"""What a run needs before it computes anything: the texts, the model, the tokens.

Everything that can be wrong with them is found here, before the long work: texts are read before a model is loaded, and
a model is rejected before tokens are cut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from linearpatch.calibration.questions import Questions
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.checks import STOCK_FORMATS, check_foldable, check_model
from linearpatch.data.blocks import BlockSpec, TokenBlocks
from linearpatch.data.reader import Reader, Text
from linearpatch.distillation.training import Training
from linearpatch.evaluation.evaluation import Evaluation, Measurement, Preparation
from linearpatch.models.model import LoadedModel, Model
from linearpatch.patches.patch import Patch
from linearpatch.registry import name_of
from linearpatch.results.record import Record
from linearpatch.results.sections import CalibrationSection, ModelSection
from linearpatch.storage.cache import Cache
from linearpatch.text import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Texts:
    """Texts that have been read, before there is a model.

    Attributes:
        calibration: For choosing layers and fitting patches.
        training: For distillation; None without one.
        evaluations: Make the measurements, once there is a model.
        notes: What readers of the numbers must know of the texts.
    """

    calibration: Text
    training: Text | None
    evaluations: Sequence[Preparation]
    notes: Sequence[str]

    @classmethod
    def read(
        cls, calibration: Reader, training: Reader | None, evaluation: Reader, evaluations: Mapping[str, Evaluation]
    ) -> Texts:
        """Read all of them.

        Raises:
            DataError: one can't be read, or has nothing for its purpose.
        """
        preparations = [chosen.prepare(name, evaluation) for name, chosen in evaluations.items()]
        notes = dict.fromkeys(
            note for reader in (calibration, evaluation) for note in reader.corpus.notes(reader.purpose)
        )
        return cls(calibration.open(), training.open() if training else None, preparations, list(notes))

    @property
    def are_deferred(self) -> bool:
        """Whether the model generates the text of calibration or distillation."""
        return any(text is not None and text.is_deferred for text in (self.calibration, self.training))

    def generated(
        self,
        model: LoadedModel,
        cache: Cache,
        calibration: tuple[BlockSpec, int | None],
        training: tuple[BlockSpec, int],
    ) -> Texts:
        """The same with what the model generates; evaluations generate theirs when they are prepared.

        Args:
            model: The dense model.
            cache: Keeps what was generated.
            calibration: How that text will be cut, and how many blocks of it held out.
            training: The same of the text of a distillation.
        """
        return replace(
            self,
            calibration=self.calibration.generated(model, cache, *calibration),
            training=self.training and self.training.generated(model, cache, *training),
        )


@dataclass(frozen=True)
class CalibrationTokens:
    """Tokens to choose layers and to fit patches on.

    Attributes:
        blocks: What is fitted on.
        held_out: More of them, on which nothing is fitted; None where nothing is chosen or compared on them.
        warnings: What is doubtful about the text.
    """

    blocks: TokenBlocks
    held_out: TokenBlocks | None
    warnings: Sequence[str] = ()

    def section(self, notes: Sequence[str]) -> CalibrationSection:
        """The tokens, for the record."""
        held_out = self.held_out
        return CalibrationSection(
            corpus=self.blocks.source,
            num_blocks=len(self.blocks.ids),
            block_length=self.blocks.ids.shape[1],
            token_hash=self.blocks.hash,
            repetitions_left_out=self.blocks.repetitions.count,
            held_out={"num_blocks": len(held_out.ids), "token_hash": held_out.hash} if held_out else None,
            notes=list(notes),
            warnings=list(self.warnings),
        )


@dataclass(frozen=True)
class Prepared:
    """The model and the tokens of a run.

    Attributes:
        model: The dense model.
        calibration: What layers are chosen and patches fitted on.
        lessons: What patches are trained on, and what decides which are best; None without distillation.
        measurements: All that is to be measured.
        questions: By which the pruner judges models; None where it doesn't.
    """

    model: LoadedModel
    calibration: CalibrationTokens
    lessons: tuple[TokenBlocks, TokenBlocks] | None
    measurements: Sequence[Measurement]
    questions: Questions | None = None


@dataclass
class Shared:
    """What runs in one process hand on to each other: model, tokens, and what was learnt from them.

    For runs that differ in the number of layers alone, or in pruner and patch where both read the same tokens.

    Attributes:
        ready: Gathers, in a workspace of some pruner and patch, what runs of all sizes will ask.
        cache: Of all runs.
        prepared: Model and tokens, from the first run on …
        model: … and their sections in a record.
        calibration: The same of the tokens.
        workspaces: By what a search of layers depends on beside their number; they keep streams and fits.
    """

    ready: Callable[[str, Workspace], None]
    cache: Cache
    prepared: Prepared | None = None
    model: ModelSection | None = None
    calibration: CalibrationSection | None = None
    workspaces: dict[str, Workspace] = field(default_factory=dict)

    def keep(self, prepared: Prepared, record: Record) -> None:
        """Keep what the first run prepared."""
        self.prepared, self.model, self.calibration = prepared, record.model, record.calibration

    def workspace(self, key: str, make: Callable[[], Workspace]) -> Workspace:
        """The workspace of some pruner and patch; what an earlier size fitted and the next won't ask for is dropped."""
        if key not in self.workspaces:
            self.workspaces.clear()
            self.workspaces[key] = workspace = make()
            workspace.is_shared = True
            self.ready(key, workspace)
        self.workspaces[key].repaired.clear()  # fits and their sums of one size, of no use to another
        self.cache.forget()
        return self.workspaces[key]


def load_model(
    model: Model,
    cache_dir: Path,
    *,
    patch: Patch,
    training: Training | None,
    save_format: str | None,
    mixed_layers: bool,
) -> LoadedModel:
    """Load a model.

    Args:
        model: Which.
        cache_dir: Where converted ones are kept.
        patch: What will be fitted …
        training: … and trained …
        save_format: … and saved; None: nothing is.
        mixed_layers: Whether some layers lose a sublayer, or patches may be layers of their own.

    Raises:
        ModelError: it can't be loaded, or can't have what is planned for it.
    """
    loaded = model.load(cache_dir)
    check_planned(loaded, patch, training, save_format, mixed_layers=mixed_layers)
    return loaded


def check_planned(
    loaded: LoadedModel, patch: Patch, training: Training | None, save_format: str | None, *, mixed_layers: bool
) -> None:
    """Reject a model that can't have what is planned for it.

    Raises:
        ModelError: says what.
    """
    patch.for_model(loaded.decoder).check(loaded.decoder)
    if training:
        training.check(loaded.decoder)
    if save_format is not None:
        check_model(loaded, save_format, mixed_layers=mixed_layers)
    if save_format in STOCK_FORMATS and name_of(patch) != "none":
        check_foldable(loaded.decoder)


def cut_calibration(
    text: Text,
    model: LoadedModel,
    spec: BlockSpec,
    *,
    num_held_out: int,
    spare: bool,
    is_patched: bool,
    num_copies: int = 0,
) -> CalibrationTokens:
    """Cut calibration text into blocks, some of them held out.

    Args:
        text: That was read.
        model: With its tokenizer.
        spec: How it is cut.
        num_held_out: Blocks that are held out …
        spare: … or, where these are 0, whether a few are that the text has beside the others.
        is_patched: Whether a patch will be compared with none on them.
        num_copies: Blocks more among those held out, in which a passage stands twice; fewer where few are held out.
    """
    held_out: TokenBlocks | None
    if num_held_out:
        blocks, held_out = text.cut_apart(spec, model.tokenizer, num_held_out)
    elif spare:
        blocks, held_out = _cut_beside(text, model, spec, is_patched=is_patched)
    else:
        blocks, held_out = text.cut(spec, model.tokenizer), None
    warnings = text.warnings(blocks, spec, model.tokenizer)
    if held_out is not None:
        if num_copies > len(held_out.ids):
            warnings.append(
                f"calibration.held_out_copies is {num_copies}, and {counted(len(held_out.ids), 'block')} held out have "
                f"one each. Set calibration.held_out_blocks to at least {num_copies} for more."
            )
        held_out = held_out.with_copies(num_copies)
    for warning in warnings:
        log.warning("%s", warning)
    return CalibrationTokens(blocks, held_out, warnings)


def _cut_beside(
    text: Text, model: LoadedModel, spec: BlockSpec, *, is_patched: bool
) -> tuple[TokenBlocks, TokenBlocks | None]:
    blocks, held_out = text.cut_beside(spec, model.tokenizer)
    number = len(blocks.ids)
    if held_out is None and is_patched:
        log.warning(
            "%s has no tokens left after the %s for calibration: nothing is held out, so harm done by the patch can't "
            "be measured. Use a longer text.", blocks.source, counted(number, "block"),
        )  # fmt: skip
    if spec.num_blocks not in (None, number):
        log.info("%s: %s for calibration, since some must be held out", blocks.source, counted(number, "block"))
    return blocks, held_out


def cut_training(
    text: Text, model: LoadedModel, spec: BlockSpec, num_validation_blocks: int
) -> tuple[TokenBlocks, TokenBlocks]:
    """Cut the text of a distillation: what is trained on, and what decides which step is best."""
    blocks, validation = text.cut_apart(spec, model.tokenizer, num_validation_blocks)
    read, length = counted(len(blocks.ids), "block"), blocks.ids.shape[1]
    log.info("distillation reads %s of %d tokens from a text of %s tokens", read, length, f"{blocks.available:,}")
    return blocks, validation
