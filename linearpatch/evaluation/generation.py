"""Text that must be written, without any data: continuations beside those of the dense model, tasks made by rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from linearpatch.data.blocks import BlockSpec, SettingNames
from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError, require_choice, require_range, require_seed, settings_of
from linearpatch.evaluation.evaluation import Evaluation, Measurement, Preparation
from linearpatch.evaluation.writing.continuations import Continuations
from linearpatch.evaluation.writing.measured_task import MeasuredTask
from linearpatch.evaluation.writing.questions import WrittenTask
from linearpatch.evaluation.writing.tasks import Arithmetic, Copying, Records
from linearpatch.models.model import LoadedModel
from linearpatch.registry import component
from linearpatch.runtime.memory import check_batch_size
from linearpatch.storage.cache import Cache

TASKS: Mapping[str, WrittenTask] = {task.name: task for task in (Records(), Arithmetic(), Copying())}


@component("eval", "generation")
@dataclass(frozen=True)
class Generation(Evaluation):
    """What a model writes, always the likeliest token: damage that the choice among given answers hides.

    Continuations of the evaluation corpus: the share of 4-grams that occurred before (`repeated_4grams`), the share of
    continuations that end in a loop (`loops`), their length and its ratio to dense's, and how far they are from what
    the dense model writes: tokens before the first that differs (`first_difference`, as a share `agreement`), and
    Levenshtein's distance in tokens as a share (`edit_distance`).

    Tasks made by rules, after examples: a sentence as JSON of a schema (`json`: `valid`, and with the right values
    `acc`), sums and differences of numbers with two and three digits (`arithmetic`), a list of words written again
    (`copying`: the share of words at their places).

    Attributes:
        num_continuations: Beginnings of texts that are continued; 0 leaves this part out.
        prompt_length: Tokens of each.
        new_tokens: Tokens of a continuation at most.
        tasks: Any of `json`, `arithmetic`, `copying`.
        limit: Questions of each task.
        seed: Of the questions.
        batch_size: Sequences at a time; `auto` takes as many as fit into memory.
    """

    without_dense: ClassVar[str] = "num_continuations=0"

    num_continuations: int = 16
    prompt_length: int = 64
    new_tokens: int = 128
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    limit: int = 64
    seed: int = 0
    batch_size: Any = field(default="auto", metadata={"identity": False})  # OmegaConf has no union with str

    def __post_init__(self) -> None:
        for task in self.tasks:
            require_choice("eval.generation.tasks", task, TASKS)
        require_range("eval.generation.num_continuations", self.num_continuations, low=0)
        require_range("eval.generation.prompt_length", self.prompt_length, low=2)
        require_range("eval.generation.new_tokens", self.new_tokens, low=1)
        require_range("eval.generation.limit", self.limit, low=1)
        require_seed("eval.generation.seed", self.seed)
        check_batch_size("eval.generation.batch_size", self.batch_size)
        if not self.tasks and not self.num_continuations:
            raise ConfigError(
                "eval.generation has neither tasks nor continuations. Set eval.generation.num_continuations to at "
                f"least 1, or name tasks: {', '.join(TASKS)}."
            )
        with settings_of("eval.generation"):
            self.spec("generation")  # checks the rest

    @property
    def needs_dense(self) -> bool:
        """Continuations are compared with those of the dense model."""
        return self.num_continuations > 0

    def spec(self, name: str) -> BlockSpec | None:
        """How the text is cut into beginnings, for the evaluation of that name."""
        if not self.num_continuations:
            return None
        names = SettingNames(f"eval.{name}", "prompt_length", number="num_continuations", overlap="")
        return BlockSpec(self.num_continuations, self.prompt_length, "windows", seed=self.seed, names=names)

    def readers(self, reader: Reader) -> tuple[Reader, ...]:
        """The run's evaluation corpus, where some of it is continued."""
        return (reader,) if self.num_continuations else ()

    def prepare(self, name: str, reader: Reader) -> Preparation:
        """Read the corpus; the continuations and each task are measurements of their own."""
        text = reader.open() if self.num_continuations else None

        def measurements(model: LoadedModel, cache: Cache) -> list[Measurement]:
            owner = f"eval.{name}"
            made = []
            if text is not None and (spec := self.spec(name)) is not None:
                blocks = text.generated(model, cache, spec).cut(spec, model.tokenizer)
                continued = Continuations(model, cache, blocks, self.new_tokens, self.batch_size, owner)
                made.append(continued.measurement(f"{name}/continuations"))
            for task in self.tasks:
                questions = TASKS[task].questions(self.limit, self.seed)
                protocol = f"{len(questions)} questions made by rules, seed {self.seed}, answers written greedily"
                measured = MeasuredTask(TASKS[task], questions, model.tokenizer, self.batch_size, owner)
                made.append(measured.measurement(f"{name}/{task}", f"{task}: {protocol}"))
            return made

        return measurements
