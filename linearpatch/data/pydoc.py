"""The embedded text: Python's own documentation, shipped with every CPython."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

from linearpatch.data.corpus import Corpus
from linearpatch.errors import DataError
from linearpatch.registry import component

# Shares of the topics, by a hash of their names.
SHARES = {"calibration": 0.35, "distillation": 0.25, "evaluation": 0.40}


@component("corpus", "pydoc")
@dataclass(frozen=True)
class PydocCorpus(Corpus):
    """Python's language reference (`pydoc_data.topics`), about 113,000 tokens in 79 topics.

    A seeded hash of each topic's name puts it into one of three splits. The text differs between Python
    versions, so numbers measured on it do, too.

    Attributes:
        seed: Of the division into splits.
    """

    name: str = field(default="pydoc", metadata={"identity": False})
    calibration: str = "calibration"
    distillation: str = "distillation"
    evaluation: str = "evaluation"
    note: str = field(
        default=f"pydoc is the documentation of Python {sys.version_info.major}.{sys.version_info.minor}; "
        "other versions give other numbers",
        metadata={"identity": False},
    )
    seed: int = 0

    def documents(self, split: str, datasets_dir: Path | None = None) -> list[str]:
        """The topics of a split, by name."""
        from pydoc_data.topics import topics

        if split not in SHARES:
            raise DataError(f"corpus pydoc has no split {split!r}. Allowed: {', '.join(SHARES)}.")
        return [topics[topic] for topic in sorted(topics) if self._split_of(topic) == split]

    def _split_of(self, topic: str) -> str:
        digest = hashlib.sha256(f"{self.seed}/{topic}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        for split, share in SHARES.items():
            if position < share:
                return split
            position -= share
        return "evaluation"
