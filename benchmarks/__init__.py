"""What is claimed about speed and memory, each claim measured against its limit in one run.

One file for each benchmark, with a function `claims()`; `linearpatch bench NAME` prints them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.measure import Claim

BENCHMARKS = (
    "startup",
    "statistics",
    "sleb",
    "patch_aware",
    "taylor",
    "perplexity",
    "divergence",
    "harness",
    "distill",
    "heal",
    "generate",
    "report",
    "memory",
)

# Those that need a large machine, many minutes or llama.cpp run by name only.
LARGE = ("distill_8b", "evolution", "frontier", "gpu", "latency", "llama_cpp", "sweep")


def claims_of(name: str) -> Sequence[Claim]:
    """Run one benchmark."""
    claims: Sequence[Claim] = importlib.import_module(f"benchmarks.{name}").claims()
    return claims
