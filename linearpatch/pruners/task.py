"""TALE: layers by the accuracy on questions of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from linearpatch.calibration.questions import Answered, QuestionSource, QuestionTexts
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, looked_in, require_range, require_seed
from linearpatch.models.edit import Edit
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores, SearchStep
from linearpatch.runtime.progress import steps
from linearpatch.storage.cache import Entry


@component("pruner", "task", title="TALE")
@dataclass(frozen=True)
class TaskAware(Pruner):
    """Greedy search: each step removes the layer without which most questions of a task are answered right.

    TALE (task-aware layer elimination). The questions are those of the task's split for training, or another that
    evaluations don't ask: never its test questions. Of equal accuracies the lower loss of the right answers decides,
    then the earlier layer. Each step is cached, so that one search serves every smaller number of layers.

    Attributes:
        tasks: Names of tasks of lm_eval, each a choice among answers; the mean over them counts.
        limit: So many questions of each task, drawn at random; null takes all.
        include_path: A folder with tasks of your own.
        seed: Of the drawing; the YAML takes the run's.
    """

    tasks: list[str] = field(default_factory=list)
    limit: int | None = 128
    include_path: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise ConfigError("pruner=task needs names of tasks, such as 'pruner.tasks=[arc_easy]'.")
        if self.limit is not None:
            require_range("pruner.limit", self.limit, low=1)
        require_seed("pruner.seed", self.seed)
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise ConfigError(f"pruner.include_path={self.include_path} is not a folder{looked_in(self.include_path)}.")

    def questions(self, datasets_dir: Path | None) -> QuestionTexts:
        """Those of the tasks."""
        return QuestionSource(tuple(self.tasks), self.limit, self.seed, self.include_path).read(datasets_dir)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Remove one layer after the other."""
        removed: list[int] = []
        search_steps: list[SearchStep] = []
        for _ in range(n):
            candidates = [layer for layer in self.candidates(workspace.num_layers) if layer not in removed]
            answered = dict(zip(candidates, self._answered(workspace, removed, candidates), strict=True))
            best = min(answered, key=lambda layer: (-answered[layer].accuracy, answered[layer].loss, layer))
            errors = {str(layer): 1 - one.accuracy for layer, one in answered.items()}
            search_steps.append(SearchStep(best, errors, []))
            removed.append(best)
        return Edit.of_layers(removed, scores=LayerScores("share of questions answered wrong", steps=search_steps))

    def _answered(self, workspace: Workspace, removed: Sequence[int], candidates: Sequence[int]) -> list[Answered]:
        """How the model does without `removed` and each candidate more; cached."""
        questions = workspace.questions
        if questions is None:
            raise ConfigError("pruner=task needs questions. Use linearpatch.run or the command line, which load them.")

        def compute() -> Entry:
            base, answers = Edit.of_layers(removed), []
            with steps(f"questions without each of {len(candidates)} layers", len(candidates)) as on_step:
                for layer in candidates:
                    edited = base.without_layers([layer]).decoder(workspace.decoder)
                    answers.append(asdict(questions.ask(edited)))
                    on_step()
            return Entry(facts={"answers": answers})

        key = {
            "model": workspace.key["model"],
            "questions": questions.key,
            "version": self.version,
            "removed": sorted(removed),
            "candidates": list(candidates),
        }
        return [Answered(**one) for one in workspace.cache.get("answers", key, compute).facts["answers"]]
