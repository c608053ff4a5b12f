"""The questions of the `smoke` suite, one function a kind, in the form of lm-eval's `custom_dataset`.

lm-eval loads this file by its path, so it imports nothing of the package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def read(kind: str) -> list[dict[str, Any]]:
    """The items of a kind, from the file of that name beside this one.

    Args:
        kind: `facts`, `completion`, `pronouns` or `arithmetic`.

    Returns:
        For each item its `context`, its `choices` and the index of the right one, `answer`.
    """
    lines = Path(__file__).with_name(f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def facts(**_: Any) -> dict[str, Dataset]:
    """Beginnings of sentences that state a well-known fact."""
    return {"test": Dataset.from_list(read("facts"))}


def completion(**_: Any) -> dict[str, Dataset]:
    """Everyday situations with one sensible continuation."""
    return {"test": Dataset.from_list(read("completion"))}


def pronouns(**_: Any) -> dict[str, Dataset]:
    """Sentences with a pronoun whose meaning only sense tells."""
    return {"test": Dataset.from_list(read("pronouns"))}


def arithmetic(**_: Any) -> dict[str, Dataset]:
    """Sums, differences, products, comparisons and word problems with small numbers."""
    return {"test": Dataset.from_list(read("arithmetic"))}
