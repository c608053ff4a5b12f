"""What a process of a sweep is asked to do, as a line of text that any launcher can carry."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from linearpatch.overrides import command, override

# Parts of runs: a whole one, the texts that the dense model generates, its evaluations, one pass for the statistics of
# several runs, or the choice of layers with the evaluations of the pruned model.
PARTS = ("run", "texts", "dense", "statistics", "pruned")


@dataclass(frozen=True)
class Request:
    """A process' work.

    Attributes:
        part: One of `PARTS`.
        name: Of the record: the run's id, or the shared step's.
        folder: Where the record goes.
        overrides: Of the run's configuration; of several runs for `statistics`.
        group: Label of the sweep.
        search_path: Folders of the user's own configuration.
        since: Cached results from before (seconds since 1970) are recomputed; None: all are good.
    """

    part: str
    name: str
    folder: str
    overrides: tuple[tuple[str, ...], ...]
    group: str | None = None
    search_path: tuple[str, ...] = ()
    since: float | None = None

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Request:
        """What `to_text` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["overrides"] = tuple(tuple(words) for words in values["overrides"])
        values["search_path"] = tuple(values["search_path"])
        return cls(**values)


def command_of(request: Request) -> str:
    """What repeats a run of a sweep alone, in the same folder."""
    words = [word for word in request.overrides[0] if not word.startswith("output_dir=")]
    return command([*words, override("output_dir", request.folder, literal=True)])
