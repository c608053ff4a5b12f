"""The command line: `linearpatch run | report | status | generate | list | cache | doctor | bench`."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from linearpatch.console import PlainConsole
from linearpatch.errors import ConfigError, LinearPatchError, require_range, suggest
from linearpatch.progress import WIDTH_OF_FILES, console
from linearpatch.words import counted

if TYPE_CHECKING:
    from linearpatch.sweep.plan import Plan
    from linearpatch.sweep.schedule import Outcome
    from linearpatch.upkeep import Kept

log = logging.getLogger("linearpatch")
out = PlainConsole(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)

MOST_SHOWN = 10  # of damaged entries

EPILOG = """\
examples:
  linearpatch run                                       prune the embedded model by the defaults
  linearpatch run pruner=sleb num_pruned_layers=7       override a choice and a value
  linearpatch run -m pruner=sleb,shortgpt patch=none,rotate     every combination
  linearpatch run -m pruner=sleb,shortgpt --dry-run     what a sweep would do
  linearpatch run --cfg job                             print the configuration and stop
  linearpatch run 'eval=[ppl,smoke,speed]'              measure more than perplexity
  linearpatch run save_model=true output_dir=small      write the pruned, patched model to small/model
  linearpatch status outputs                            how far the runs of a sweep are
  linearpatch report outputs                            tables, figures and a page that compare its runs
  linearpatch generate small "The sea is"               continue a text with it
  linearpatch list pruner                               every pruner with a line about it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0 only if all it was asked for was done."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="linearpatch",
        description="Remove layers from a language model, patch the gap, measure what is left.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="one experiment, or with -m a sweep; the rest are Hydra overrides", add_help=False)
    generating = commands.add_parser("generate", help="continue a text with a saved model")
    generating.add_argument("folder", help="a checkpoint, or the folder of the run that wrote it")
    generating.add_argument("prompt", help="text to continue; - reads it from standard input")
    generating.add_argument("--chat", action="store_true", help="answer the prompt, by the tokenizer's chat template")
    generating.add_argument("--base", help="for an adapter: the dense model, a choice of `linearpatch list model`, "
                            "a hub id or a folder")  # fmt: skip
    generating.add_argument("--dtype", default="auto", help="float32, bfloat16, float16; auto is the checkpoint's")
    generating.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto is the first GPU, else the CPU")
    generating.add_argument("--max-new-tokens", type=int, default=128, help="tokens to write at most (%(default)s)")
    generating.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (%(default)s)")
    generating.add_argument("--top-p", type=float, default=1.0, help="share of probability to sample (%(default)s)")
    generating.add_argument("--num-beams", type=int, default=1, help="beam search, printed at the end (%(default)s)")
    generating.add_argument("--seed", type=int, default=0, help="of the sampling (%(default)s)")
    generating.add_argument("--no-cache", action="store_true", help="compute keys and values anew for every token")
    listing = commands.add_parser("list", help="every choice of a group, or of all groups")
    listing.add_argument("group", nargs="?", help="such as pruner")
    benching = commands.add_parser("bench", help="measure a claim about speed or memory")
    benching.add_argument("name", help="name of the benchmark, or all")
    reporting = commands.add_parser("report", help="compare runs: tables, figures, an interactive page")
    reporting.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, or a folder with runs below it")
    reporting.add_argument("--output", type=Path, help="where the report goes (report/ in the first DIR)")
    reporting.add_argument("--title", help="its head; by default the models")
    reporting.add_argument(
        "--published", type=Path, metavar="CSV", help="published figures to stand beside measured ones"
    )
    reporting.add_argument("--wandb", action="store_true", help="put the same comparison on Weights & Biases as well")
    watching = commands.add_parser("status", help="how far the runs of a folder are")
    watching.add_argument("folder", help="the output_dir of a sweep or of a run")
    watching.add_argument("--once", action="store_true", help="print the table and stop, as where there is no terminal")
    caching = commands.add_parser("cache", help="look after what is kept between runs")
    caching.add_argument("action", choices=("ls", "rm", "verify"), help="list it, remove some of it, find damage")
    caching.add_argument("kind", nargs="?", help="for rm: a kind that ls lists, or all")
    caching.add_argument("--older-than", type=float, default=0, metavar="DAYS", help="for rm: only such entries")
    caching.add_argument("--yes", action="store_true", help="for rm: don't ask whether to remove what is listed")
    caching.add_argument("--dir", type=Path, help="the cache; by default LINEARPATCH_CACHE or the user's")
    commands.add_parser("doctor", help="what this machine has and lacks")
    parsed, rest = parser.parse_known_args(arguments)
    if rest and parsed.command != "run":
        parser.error(f"unknown arguments: {' '.join(rest)}")

    command: Callable[[], int] = {
        "run": lambda: _run(arguments[1:]),
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
        return command()
    except KeyboardInterrupt as error:
        why = f"Interrupted: {error}" if str(error) else "Interrupted"
        log.error("%s. What a run computed is in the cache; the same command goes on from there.", why)
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except LinearPatchError as error:
        log.error("%s", error)
    return 1


def _run(arguments: list[str]) -> int:
    """Compose with Hydra, run each job, print the table."""
    import hydra

    from linearpatch.config import CONF_DIR, check_choices, readable_errors, register_schemas
    from linearpatch.jobs import Jobs
    from linearpatch.results.tables import run_table
    from linearpatch.stopping import terminable
    from linearpatch.sweep.tables import plan_table
    from linearpatch.workers import Workers

    workers = Workers.launched()
    if not workers.is_main:  # the first process speaks for all
        log.setLevel(logging.ERROR)
    register_schemas()
    check_choices(arguments)
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    if is_sweep and {"--cfg", "-c"} & set(arguments):
        raise ConfigError("--cfg shows one configuration. Leave -m out and give each key one value, or use --dry-run.")
    jobs = Jobs(dry_run="--dry-run" in arguments)
    if any(word.startswith("sweep=") for word in arguments):
        if not is_sweep:
            raise ConfigError("sweep=FILE names the combinations of a sweep. Add -m.")
        arguments = [re.sub(r"^sweep=", "hydra.sweeper.file=", word) for word in arguments]
    # Hydra would print a bad override in its own way and exit; with this it raises, and we say it in a sentence.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra takes its flags before overrides only.
    arguments = sorted(
        (word for word in arguments if word != "--dry-run"), key=lambda word: word not in ("-m", "--multirun")
    )
    previous, sys.argv = sys.argv, ["linearpatch run", *arguments]
    try:
        with readable_errors(), terminable():
            hydra.main(config_path=str(CONF_DIR.resolve()), config_name="config", version_base="1.3")(jobs)()
    finally:
        sys.argv = previous
        workers.leave()

    if not workers.is_main:
        return 0
    if jobs.plan is not None and jobs.dry_run:
        out.print(plan_table(jobs.plan, jobs.estimates, jobs.at_a_time))
        return 1 if any(job.error for job in jobs.plan.jobs) else 0
    if jobs.plan is not None:
        return _tell_sweep(jobs.plan, jobs.outcomes)
    if jobs.record is not None:  # --help, --cfg and --info print and stop
        out.print(run_table(jobs.record))
        out.print(f"{jobs.folder}/result.json", soft_wrap=True)
        if saved := jobs.record.checkpoint:
            out.print(f"{jobs.folder}/{saved['folder']} ({saved['format']})", soft_wrap=True)
    return 0


def _tell_sweep(plan: Plan, outcomes: Sequence[Outcome]) -> int:
    """Print what the runs found and what became of each."""
    from linearpatch.results.tables import comparison_table
    from linearpatch.sweep.tables import outcomes_table

    records = [outcome.record for outcome in outcomes]
    if any(record.metrics for record in records):
        out.print(comparison_table(records))
    out.print(outcomes_table(outcomes))
    out.print(f"{plan.folder}/*/result.json", soft_wrap=True)
    return 0 if all(record.status == "completed" for record in records) else 1


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
    from linearpatch.cache import default_cache_dir
    from linearpatch.checkpoint.loading import apply, checkpoint_folder, load, load_tokenizer
    from linearpatch.checkpoint.manifest import read_manifest
    from linearpatch.config import choices, compose_experiment
    from linearpatch.models.hub import HubModel
    from linearpatch.models.model import Model

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
        chosen = [f"model.{name}={value}" for name, value in settings.items() if value != "auto"]
        source = compose_experiment([f"model={base}", *chosen]).model
    dense = source.load(default_cache_dir())
    return apply(dense.decoder.model, path), dense.tokenizer


def _list(group: str | None) -> int:
    """Print the choices of one group or of all."""
    from linearpatch.config import PRESET_GROUPS, choices
    from linearpatch.registry import GROUPS

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

    from linearpatch.sweep.watching import status_table, watch

    jobs = watch(folder)
    if once or not out.is_terminal:
        out.print(status_table(folder, jobs))
    else:
        with Live(status_table(folder, jobs), console=out, refresh_per_second=2) as live:
            while not all(job.is_over for job in jobs):
                time.sleep(1)
                jobs = watch(folder)
                live.update(status_table(folder, jobs))
    return 1 if any(job.now.state in ("failed", "interrupted", "lost") for job in jobs) else 0


def _cache(arguments: argparse.Namespace) -> int:
    """List, remove or check what is kept between runs."""
    from linearpatch.cache import default_cache_dir
    from linearpatch.progress import steps
    from linearpatch.upkeep import contents, damaged, entries_to_check, removable, remove

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
        out.print(f"{checked}, {len(found)} damaged; those are computed anew when needed")
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
    from linearpatch.bench import BENCHMARKS, LARGE
    from linearpatch.bench.measure import claims_table

    known = {**BENCHMARKS, **LARGE}
    if name != "all" and name not in known:
        raise ConfigError(f"{name!r} is not a benchmark. {suggest(name, [*known, 'all'])}")
    for chosen in BENCHMARKS if name == "all" else [name]:
        out.print(claims_table(chosen, known[chosen]()))
    return 0


def _set_up_logging() -> None:
    handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


if __name__ == "__main__":
    sys.exit(main())
