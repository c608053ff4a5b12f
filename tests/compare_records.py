"""Compare the run records of two states of the code: what was measured must be equal.

    python tests/compare_records.py BEFORE AFTER [--tolerance 1e-6]

BEFORE and AFTER are folders of runs of the same commands. Times, memory, paths, the environment and the hashes of
settings are left out; numbers may differ by the tolerance, relatively; an empty field is as good as none. Ends with
status 1 where anything else differs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEFT_OUT = {
    "timings_s", "peak_memory_bytes", "environment", "run_id", "command", "config", "group", "answered", "checkpoint",
}  # fmt: skip
TIMES = {"tokens_per_s"}  # wherever they stand


def differences(before: Any, after: Any, tolerance: float, path: str = "") -> Iterator[str]:
    """Where two records differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after} - (TIMES if path else LEFT_OUT)):
            if [before.get(key, {}), after.get(key, {})] == [{}, {}]:
                continue  # nothing, written or left out
            if key not in before or key not in after:
                yield f"{path}/{key}: only in {'before' if key in before else 'after'}"
            else:
                yield from differences(before[key], after[key], tolerance, f"{path}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, tolerance, f"{path}[{index}]")
    elif isinstance(before, float) and isinstance(after, (int, float)):
        if not math.isclose(before, after, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{path}: {before!r} and {after!r}"
    elif before != after:
        yield f"{path}: {before!r} and {after!r}"


def main() -> int:
    """Compare the records of two folders, by the names of the folders that they are in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    arguments = parser.parse_args()
    records = [
        {file.parent.relative_to(folder): json.loads(file.read_text()) for file in folder.rglob("result.json")}
        for folder in (arguments.before, arguments.after)
    ]
    names = sorted({*records[0], *records[1]})
    found = [f"{name}: only in one of the folders" for name in names if not all(name in one for one in records)]
    for name in names:
        if all(name in one for one in records):
            pair = (one[name] for one in records)
            found += [f"{name}{where}" for where in differences(*pair, arguments.tolerance)]
    sys.stdout.write("\n".join([*found, f"{len(names)} records, {len(found)} differences"]) + "\n")
    return 1 if found or not names else 0


if __name__ == "__main__":
    sys.exit(main())
