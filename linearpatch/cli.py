# PYTHON_ARGCOMPLETE_OK
"""The command line: `linearpatch run | report | status | generate | list | cache | doctor | bench`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from linearpatch.arguments import command_parser
from linearpatch.choices import PRESET_GROUPS, choices
from linearpatch.errors import ConfigError, LinearPatchError, require_path, require_range, suggest
from linearpatch.overrides import override
from linearpatch.registry import GROUPS
from linearpatch.run_command import run_command
from linearpatch.runtime.progress import console, out
from linearpatch.text import counted

if TYPE_CHECKING:
    from linearpatch.storage.administration import Kept

log = logging.getLogger("linearpatch")

MOST_SHOWN = 10  # of damaged entries
MOST_OF_REASON = 300  # characters of an unexpected error


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0 only if all it was asked for was done."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what a word may be
        import argcomplete

        argcomplete.autocomplete(command_parser(), always_complete_options=False)
    parser = command_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and parsed.command != "run":
        parser.error(f"unknown arguments: {' '.join(rest)}")

    command: Callable[[], int] = {
        "run": lambda: run_command(arguments[1:]),
        "generate": lambda: _generate(parsed),
        "list": lambda: _list(parsed.group),
        "report": lambda: _report(parsed),
        "status": lambda: _status(Path(parsed.folder), once=parsed.once),
        "cache": lambda: _cache(parsed),
        "doctor": _doctor,
        "bench": lambda: _bench(parsed.name),
    }[parsed.command]
    _set_up_logging()
    try:
        _check_paths(parsed)
        return command()
    except KeyboardInterrupt as error:
        why = f"Interrupted: {error}" if str(error) else "Interrupted"
        log.error("%s. What a run computed is in the cache; the same command goes on from there.", why)
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except LinearPatchError as error:
        log.error("%s", error)
    except Exception as error:  # the last resort: a bug of ours, or a library's error that nobody expected
        log.error("%s", _unexpected(error))
    return 1


def _check_paths(parsed: argparse.Namespace) -> None:
    """Refuse names that no file or folder can have."""
    for name in ("folder", "folders", "output", "published", "dir", "base"):
        given = getattr(parsed, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None:
                require_path(name, str(value))


def _unexpected(error: Exception) -> str:
    """One sentence about an error that has none of its own; its traceback goes to a file."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("The traceback is in ")]
    if not notes:
        with tempfile.NamedTemporaryFile("w", prefix="linearpatch-", suffix=".log", delete=False) as file:
            traceback.print_exception(error, file=file)
        notes = [f"The traceback is in {file.name}."]
    reason = " ".join(str(error).split())[:MOST_OF_REASON] or "no reason given"
    return f"Unexpected error, {type(error).__name__}: {reason.rstrip('.')}. {notes[0]}"


def _generate(arguments: argparse.Namespace) -> int:
    """Load a checkpoint, or a dense model with an adapter, and print what it writes."""
    from linearpatch.checkpoint.generation import Decoding, write_text

    decoding = Decoding(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        num_beams=arguments.num_beams,
        seed=arguments.seed,
        use_cache=not arguments.no_cache,
    )
    try:
        prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
        prompt.encode()
    except UnicodeError as error:
        raise ConfigError(f"The prompt isn't UTF-8 text: {error}.") from error
    model, tokenizer = _load(arguments.folder, arguments.base, arguments.dtype, arguments.device)
    text = write_text(model, tokenizer, prompt, decoding, chat=arguments.chat)
    if decoding.num_beams > 1:  # everything else has been printed token by token
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def _load(folder: str, base: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    """The model and tokenizer of a checkpoint; those of `base` with the adapter where it is one."""
    from linearpatch.checkpoint.loading import apply, checkpoint_folder, load, load_tokenizer
    from linearpatch.checkpoint.manifest import read_manifest
    from linearpatch.config import compose_experiment
    from linearpatch.models.hub import HubModel
    from linearpatch.models.model import Model
    from linearpatch.storage.cache import default_cache_dir

    path = checkpoint_folder(folder)
    manifest = read_manifest(path)
    if manifest.format != "adapter":
        if base is not None:
            raise ConfigError(f"{path} is a whole model, not an adapter. Leave --base out.")
        placing = HubModel(path=str(path), dtype=dtype, device=device)
        return load(path, dtype=placing.torch_dtype, **placing.placement), load_tokenizer(path)
    if base is None:
        raise ConfigError(
            f"{path} is an adapter. Name its dense model: --base {manifest.base.name} (a choice of `linearpatch list "
            "model`, a hub id or a folder)."
        )
    source: Model = HubModel(path=base, dtype=dtype, device=device)
    if base in choices("model"):
        settings = {"dtype": dtype, "device": device}
        chosen = [override(f"model.{name}", value, literal=True) for name, value in settings.items() if value != "auto"]
        source = compose_experiment([f"model={base}", *chosen]).model
    dense = source.load(default_cache_dir())
    return apply(dense.decoder.model, path), dense.tokenizer


def _list(group: str | None) -> int:
    """Print the choices of one group or of all."""
    groups = [*GROUPS, *PRESET_GROUPS]
    if group is not None and group not in groups:
        raise ConfigError(f"{group!r} is not a group. {suggest(group, groups)}")
    for name in [group] if group else groups:
        table = Table(title=name, title_justify="left", show_header=False, box=None, pad_edge=False)
        for choice, description in choices(name).items():
            table.add_row(f"  {name}={choice}", escape(description))
        out.print(table)
        out.print()
    return 0


def _report(arguments: argparse.Namespace) -> int:
    """Write a report, print its first tables; return 1 if it leaves runs out."""
    from linearpatch.report.report import write_report
    from linearpatch.report.wandb_view import push_wandb_report

    output = arguments.output or arguments.folders[0] / "report"
    report = write_report(arguments.folders, output, title=arguments.title, published=arguments.published)
    for table in report.terminal_tables():
        out.print(table)
    out.print(f"{report.folder}/report.html and {counted(len(report.files) - 1, 'file')} more", soft_wrap=True)
    if arguments.wandb:
        out.print(push_wandb_report(arguments.folders, title=arguments.title), soft_wrap=True)
    return 1 if report.failures else 0


def _status(folder: Path, *, once: bool) -> int:
    """Show the jobs of a folder until all are over; return 1 if one didn't complete."""
    from rich.live import Live

    from linearpatch.sweep.status import Watch, status_table

    watch = Watch(folder)
    overview = watch.look()
    if once or not out.is_terminal:
        out.print(status_table(folder, overview.jobs))
    else:
        with Live(status_table(folder, overview.jobs), console=out, refresh_per_second=2) as live:
            while not overview.is_over:
                time.sleep(1)
                overview = watch.look()
                live.update(status_table(folder, overview.jobs))
    for advice in overview.advice:  # unfolded, so that it can be pasted
        out.print(advice, soft_wrap=True, markup=False, highlight=False)
    return 0 if overview.is_complete else 1


def _cache(arguments: argparse.Namespace) -> int:
    """List, remove or check what is kept between runs."""
    from linearpatch.runtime.progress import steps
    from linearpatch.storage.administration import contents, damaged, entries_to_check, half_written, removable, remove
    from linearpatch.storage.cache import default_cache_dir
    from linearpatch.storage.leftovers import remove_dead_leases

    require_range("--older-than", arguments.older_than, low=0)
    root: Path = arguments.dir or default_cache_dir()
    if arguments.action == "rm":
        if arguments.kind is None:
            raise ConfigError("What is to be removed? Name a kind that `linearpatch cache ls` lists, or all.")
        chosen = removable(root, arguments.kind, older_than_s=arguments.older_than * 86_400)
        if not chosen:
            out.print(f"Nothing to remove from {root}.", soft_wrap=True, markup=False)
            return 0
        out.print(_kept_table(f"to be removed from {root}", chosen))
        if not arguments.yes and not _confirmed("Remove these entries?"):
            out.print("Nothing was removed.")
            return 1
        count, size = remove(chosen)
        remove_dead_leases(root)
        out.print(f"removed {counted(count, 'entry')}, {size / 2**20:,.1f} MiB")
        return 0
    if arguments.action == "verify":
        with steps("entries", len(entries_to_check(root))) as on_step:
            found = damaged(root, on_step)
        for path, reason in found[:MOST_SHOWN]:
            out.print(f"{path}: {reason}", soft_wrap=True, markup=False)
        if len(found) > MOST_SHOWN:
            out.print(f"… and {len(found) - MOST_SHOWN} more")
        checked = counted(len(entries_to_check(root)), "entry")
        out.print(f"{checked}, {len(found)} damaged; those are recomputed when needed")
        if left := [one for one in half_written(root) if one.is_leftover]:
            what, mib = counted(len(left), "temporary file"), sum(one.size for one in left) / 2**20
            out.print(f"{what} of killed processes, {mib:,.1f} MiB; `linearpatch cache rm temporary` removes them")
        return 1 if found else 0
    out.print(_kept_table(str(root), contents(root)))
    return 0


def _kept_table(title: str, found: Sequence[Kept]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    table.add_column("kind")
    for column in ("entries", "MiB", "oldest", "newest"):
        table.add_column(column, justify="right")
    for kept in found:
        days = [time.strftime("%Y-%m-%d", time.localtime(stamp)) for stamp in (kept.oldest, kept.newest)]
        table.add_row(escape(kept.kind), f"{kept.count:,}", f"{kept.size / 2**20:,.1f}", *days)
    return table


def _confirmed(question: str) -> bool:
    """Ask a yes-or-no question; no answer means no.

    Raises:
        ConfigError: there is no terminal to ask on.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("Nothing was removed: there is no terminal to confirm it on. Add --yes.")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _doctor() -> int:
    """Look the machine over; return 1 if something would stop runs."""
    from linearpatch.doctor import examine, findings_table

    datasets_dir = os.environ.get("LINEARPATCH_DATASETS")
    findings = examine(Path(datasets_dir) if datasets_dir else None)
    out.print(findings_table(findings))
    return 1 if any(finding.state == "problem" for finding in findings) else 0


def _bench(name: str) -> int:
    """Run one benchmark, or all, and print measured against allowed."""
    from linearpatch.bench import BENCHMARKS, LARGE, claims_of

    known = (*BENCHMARKS, *LARGE)
    if name != "all" and name not in known:
        raise ConfigError(f"{name!r} is not a benchmark. {suggest(name, [*known, 'all'])}")
    from linearpatch.bench.measure import claims_table

    for chosen in BENCHMARKS if name == "all" else [name]:
        out.print(claims_table(chosen, claims_of(chosen)))
    return 0


def _set_up_logging() -> None:
    handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


if __name__ == "__main__":
    sys.exit(main())
