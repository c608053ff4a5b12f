"""A wrong input: a command line, with what must lie in the working folder and in the environment before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TINY = (
    "run", "debug=tiny", "model=random", "num_pruned_layers=2", "tracker=none", "output_dir=D",
    "model.settings.num_hidden_layers=4", "model.settings.hidden_size=32", "model.settings.intermediate_size=48",
)  # fmt: skip


LONG = "x" * 300


@dataclass(frozen=True)
class Bad:
    """A wrong input.

    Attributes:
        kind: Such as `values`.
        name: Of the input among those of its kind.
        words: The command line.
        make: Puts what is needed into the working folder, given a good model folder and a good checkpoint.
        environment: Variables.
    """

    kind: str
    name: str
    words: tuple[str, ...]
    make: Callable[["Good"], object] = lambda good: None
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        name = "".join(character if character.isascii() and character.isprintable() else "?" for character in self.name)
        return f"{self.kind}: {name[:60]}"


@dataclass(frozen=True)
class Good:
    """What inputs are made from: folders of a model in the hub's layout, and of a run that saved its model."""

    model: Path
    run: Path


def run(kind: str, *words: str, name: str = "", **more: object) -> Bad:
    return Bad(kind, name or " ".join(words), (*TINY, *words), **more)


def file(path: str, content: str | bytes) -> Callable[[Good], object]:
    """A file with some content."""

    def make(good: Good) -> None:
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    return make
