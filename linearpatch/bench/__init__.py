"""What is claimed about speed and memory, each claim measured against its limit in one run.

One file for each benchmark, with a function `claims()`; `linearpatch bench NAME` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from linearpatch.bench import (
    distill,
    distill_8b,
    gpu,
    harness,
    patch_aware,
    perplexity,
    report,
    sleb,
    statistics,
    sweep,
    taylor,
)
from linearpatch.bench.measure import Claim

BENCHMARKS: Mapping[str, Callable[[], Sequence[Claim]]] = {
    "statistics": statistics.claims,
    "sleb": sleb.claims,
    "patch_aware": patch_aware.claims,
    "taylor": taylor.claims,
    "perplexity": perplexity.claims,
    "harness": harness.claims,
    "distill": distill.claims,
    "report": report.claims,
}

# Those that need a large machine or half an hour run by name only.
LARGE: Mapping[str, Callable[[], Sequence[Claim]]] = {
    "distill_8b": distill_8b.claims,
    "gpu": gpu.claims,
    "sweep": sweep.claims,
}
