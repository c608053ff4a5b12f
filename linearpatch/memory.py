"""The process' memory at its highest."""

from __future__ import annotations

import resource
from pathlib import Path


def high_water() -> int:
    """Bytes of memory that this process has had at most.

    Linux keeps two records. `getrusage`'s survives exec, so that a process started from a large one begins
    with that one's peak; the one in /proc belongs to this program alone.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
