"""How questions are asked: the settings that tasks of lm_eval take from the user."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from linearpatch.errors import ConfigError, looked_in, require_choice, require_path, require_range
from linearpatch.runtime.memory import check_batch_size

MISSING_DATA = ("error", "skip")
BACKENDS = ("memory", "vllm")


@dataclass(frozen=True)
class TaskSettings:
    """Which tasks, and how.

    Attributes:
        tasks: Names of tasks, groups and tags.
        num_fewshot: Examples before each question; null takes each task's own number.
        limit: Only the first so many questions of each task; null takes all.
        include_path: A folder with tasks of your own.
        batch_size: Sequences in one forward pass; `auto` begins large and halves where memory runs out.
        max_length: Longer sequences lose their first tokens; null takes the model's limit.
        chat_template: Ask through the tokenizer's chat template, examples as turns of a conversation.
        system_instruction: Text before everything else.
        share_prefixes: Read what several requests begin with once; same results up to rounding.
        backend: `memory`: the model as it is. `vllm`: a copy of it on disk, served by vLLM (`linearpatch[vllm]`), for
            stages without a patch and patches that fold into weights.
        missing_data: `error` rejects to start where a task's data can't be had, `skip` runs without the task.
    """

    version: ClassVar[int] = 3  # of the results: raise it when the scoring changes; 3 knows each of several answers

    tasks: list[str] = field(default_factory=list)
    num_fewshot: int | None = None
    limit: int | None = None
    include_path: str | None = None
    batch_size: Any = field(default="auto", metadata={"identity": False})  # OmegaConf has no union with str
    max_length: int | None = None
    chat_template: bool = False
    system_instruction: str | None = None
    backend: str = "memory"
    share_prefixes: bool = field(default=True, metadata={"identity": False})
    missing_data: str = field(default="error", metadata={"identity": False})

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError(
                "eval=tasks needs names of tasks, such as 'tasks=[arc_easy,hellaswag]'. `lm_eval ls tasks` prints all."
            )
        check_batch_size("batch_size", self.batch_size)
        require_choice("backend", self.backend, BACKENDS)
        require_choice("missing_data", self.missing_data, MISSING_DATA)
        for what, value, low in (
            ("num_fewshot", self.num_fewshot, 0), ("limit", self.limit, 1), ("max_length", self.max_length, 2),
        ):  # fmt: skip
            if value is not None:
                require_range(what, value, low=low)
        require_path("include_path", self.include_path or "")
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise ConfigError(f"include_path={self.include_path} is not a folder{looked_in(self.include_path)}.")

    @property
    def own_folder(self) -> Path | None:
        """The folder with tasks beside those of lm_eval."""
        return Path(self.include_path).expanduser().resolve() if self.include_path else None
