"""Small sweeps in processes of their own, and what kills their jobs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

TINY = ("debug=tiny", "model=random", "num_pruned_layers=3", "tracker=none")
GRID = ("pruner=streamline,sleb", "patch=none,rotate")
APART = ("model.seed=0,1", "patch=none")  # two runs that share nothing
# Takes long enough to be killed in the middle.
SLOW = ("model.settings.num_hidden_layers=24", "calibration.num_blocks=24", "eval.ppl.num_blocks=60")


def records(folder) -> dict:
    """The records of a sweep by run, without what differs from time to time and from place to place."""
    by_run = {}
    for file in Path(folder).glob("*/result.json"):
        record = json.loads(file.read_text())
        for name in ("timings_s", "peak_memory_bytes", "environment"):
            del record[name]
        for name in ("output_dir", "cache_dir", "group"):
            del record["config"][name]
        for name in ("group", "command", "answered"):
            del record[name]
        by_run[record["run_id"]] = record
    return by_run


def states(folder) -> dict:
    return {run: record["status"] for run, record in records(folder).items()}


def start(*overrides, many=True, elsewhere=False) -> subprocess.Popen:
    """A sweep, or a run; as on another machine, by its name."""
    command = [sys.executable, "-m", "linearpatch.cli", "run", *(["-m"] if many else []), *TINY, *SLOW, *overrides]
    if elsewhere:
        command = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh", *command]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def can_be_elsewhere() -> bool:
    return subprocess.run(["unshare", "--uts", "hostname", "elsewhere"], capture_output=True).returncode == 0


def kill_all(process, folder, after_s) -> bool:
    """Kill a sweep or a run with all its processes, some time after its work began; whether it was at work."""
    while not running(folder) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(after_s)
    was_at_work = process.poll() is None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return was_at_work


def left_behind(*folders) -> list[Path]:
    """What only a process at work has: leases, files that are being written, its progress."""
    names = re.compile(r".*\.lease(\..*)?|.*\.tmp|\..*\.previous|progress\.json")
    return [path for folder in folders for path in Path(folder).rglob("*") if names.fullmatch(path.name)]


def running(folder) -> list[int]:
    """Processes of the jobs that run now."""
    processes = []
    for file in [*Path(folder).glob("*/progress.json"), *Path(folder).glob(".shared/*/progress.json")]:
        try:
            processes.append(json.loads(file.read_text())["process"])
        except (OSError, ValueError):
            continue
    return processes


def kill_one(folder, number=signal.SIGKILL, within_s=120.0) -> bool:
    """Kill a job as soon as one runs."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        for process in running(folder):
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue
            return True
        time.sleep(0.01)
    return False
