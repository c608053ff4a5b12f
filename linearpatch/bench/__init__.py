"""What is claimed about speed and memory, each claim measured against its limit in one run.

One file for each benchmark, with a function `claims()`; `linearpatch bench NAME` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from linearpatch.bench import harness, perplexity, sleb, statistics, taylor
from linearpatch.bench.measure import Claim

BENCHMARKS: Mapping[str, Callable[[], Sequence[Claim]]] = {
    "statistics": statistics.claims,
    "sleb": sleb.claims,
    "taylor": taylor.claims,
    "perplexity": perplexity.claims,
    "harness": harness.claims,
}
