"""`linearpatch run`: compose with Hydra, run what that describes, print what came of it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import yaml

from linearpatch.choices import CONF_DIR, check_names
from linearpatch.cli.completion import complete_override
from linearpatch.errors import ConfigError
from linearpatch.overrides import command, expanded, override, with_model_paths
from linearpatch.runtime.progress import out

if TYPE_CHECKING:
    from linearpatch.cli.jobs import Jobs
    from linearpatch.sweep.plan import Plan
    from linearpatch.sweep.schedule import Outcome

log = logging.getLogger("linearpatch")

# What Hydra takes beside overrides; the other flags are ours.
HYDRA_FLAGS = ("run", "multirun", "hydra_help", "resolve")
HYDRA_OPTIONS = ("cfg", "info", "package", "config_path", "config_name", "config_dir")


HELP = "one experiment, or with -m a sweep: see run --help"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them: Hydra's, and `--dry-run`."""
    overrides = parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    overrides.completer = complete_override  # type: ignore[attr-defined]
    for flag, short in (("help", "-h"), ("multirun", "-m"), ("run", "-r"), ("shell-completion", "-sc")):
        parser.add_argument(f"--{flag}", short, action="store_true")
    for flag in ("dry-run", "resolve", "hydra-help"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    kinds = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=kinds)
    for flag, short in (("package", "-p"), ("config-path", "-cp"), ("config-name", "-cn"), ("config-dir", "-cd")):
        parser.add_argument(f"--{flag}", short)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags and overrides of `linearpatch run`, in any order."""
    parser = argparse.ArgumentParser(prog="linearpatch run", add_help=False, allow_abbrev=False)
    add_arguments(parser)
    return parser.parse_intermixed_args(words)


def execute(arguments: argparse.Namespace) -> int:
    """Run one experiment, or a sweep; return 0 only if all of it was done."""
    flags = parse(arguments.words)
    if flags.help:
        out.print(_help(), markup=False, highlight=False, soft_wrap=True)
        return 0
    _check(flags)

    # Imported late: a wrong name is reported in a second, and what follows imports PyTorch.
    from linearpatch.cli.jobs import Jobs
    from linearpatch.config import check_choices, register_schemas
    from linearpatch.config_errors import readable_errors
    from linearpatch.runtime.distributed import Workers
    from linearpatch.runtime.signals import terminable

    workers = Workers.launched()
    if not workers.is_main:  # the first process speaks for all
        log.setLevel(logging.ERROR)
        for handler in log.handlers:
            handler.setFormatter(logging.Formatter(f"process {workers.rank}: %(message)s"))
    register_schemas()
    in_full = with_model_paths if flags.multirun else expanded  # of a sweep, each run's own are expanded later
    flags.overrides = in_full(flags.overrides, [flags.config_dir] if flags.config_dir else [])
    check_choices(flags.overrides)
    shows_choices = flags.cfg == "job" and flags.package is None
    jobs = Jobs(dry_run=flags.dry_run, command=command(arguments.words))
    try:
        with readable_errors(), terminable():
            if shows_choices:
                flags.cfg = None
            compose(flags, jobs)
            if shows_choices:
                out.print(jobs.configuration(resolve=flags.resolve), markup=False, highlight=False, soft_wrap=True)
                return 0
            jobs.run()
    finally:
        workers.leave()
    return _print_results(jobs) if workers.is_main else 0


def _check(flags: argparse.Namespace) -> None:
    """Reject what can't be meant, before anything heavy is imported.

    Raises:
        ConfigError: a flag contradicts another, or a choice doesn't exist.
    """
    if flags.shell_completion:
        raise ConfigError(
            "Hydra's completion doesn't know this command. Run: eval \"$(register-python-argcomplete linearpatch)\""
        )
    if flags.multirun and flags.cfg:
        raise ConfigError("--cfg shows one configuration. Leave -m out and give each key one value, or use --dry-run.")
    for at, word in enumerate(flags.overrides):
        key, _, file = word.partition("=")
        if key == "sweep":
            if not flags.multirun:
                raise ConfigError("sweep=FILE names the combinations of a sweep. Add -m.")
            flags.overrides[at] = override("hydra.sweeper.file", _file(file), literal=True)
    has_other_source = flags.config_path or flags.config_name
    if not has_other_source and not any("hydra.searchpath" in word for word in flags.overrides):
        check_names(flags.overrides, flags.config_dir)


def _file(name: str) -> str:
    """The file that `sweep=` names; the shell's completion may have left Hydra's quotes around it.

    Raises:
        ConfigError: it names none.
    """
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    if not name.strip():
        raise ConfigError("sweep= names no file. Write sweep=FILE, a YAML list of combinations, or leave it out.")
    return name


def compose(flags: argparse.Namespace, jobs: Jobs) -> None:
    """Let Hydra compose the configuration, or print what it is asked for."""
    import hydra

    words = [f"--{name.replace('_', '-')}" for name in HYDRA_FLAGS if getattr(flags, name)]
    words += [f"--{n.replace('_', '-')}={getattr(flags, n)}" for n in HYDRA_OPTIONS if getattr(flags, n) is not None]
    # Hydra would print a bad override in its own way and exit; with this it raises, and we say it in a sentence.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    previous, sys.argv = sys.argv, ["linearpatch run", *words, "--", *flags.overrides]
    try:
        with _mode_by_flag():
            hydra.main(config_path=str(CONF_DIR.resolve()), config_name="config", version_base="1.3")(jobs)()
    finally:
        sys.argv = previous


@contextmanager
def _mode_by_flag() -> Iterator[None]:
    """Spare Hydra a composition of the whole configuration that only looks for `hydra.mode`: here -m says it."""
    from hydra._internal.hydra import Hydra

    get_mode = Hydra.get_mode
    Hydra.get_mode = lambda self, config_name, overrides: None
    try:
        yield
    finally:
        Hydra.get_mode = get_mode


def _help() -> str:
    """The help that the configuration holds, where people who read YAML find it, too."""
    content = yaml.safe_load((CONF_DIR / "config.yaml").read_text(encoding="utf-8"))
    text: str = content["hydra"]["help"]["template"]
    return text.rstrip()


def _print_results(jobs: Jobs) -> int:
    """Print the record, the plan, or what became of a sweep."""
    from linearpatch.report.run_table import run_table
    from linearpatch.report.terminal import rich_table
    from linearpatch.sweep.tables import plan_table, search_table

    if jobs.plan is not None and jobs.dry_run:
        out.print(plan_table(jobs.plan, jobs.at_a_time))
        return 1 if any(job.error for job in jobs.plan.jobs) else 0
    if jobs.trials is not None:
        if jobs.plan is not None:
            _print_sweep(jobs.plan, jobs.outcomes)
        out.print(search_table(jobs.trials))
        return 0 if jobs.trials.is_complete else 1
    if jobs.plan is not None:
        return _print_sweep(jobs.plan, jobs.outcomes)
    if jobs.record is not None:  # --cfg and --info print and stop
        out.print(rich_table(run_table(jobs.record)))
        out.print(f"{jobs.folder}/result.json", soft_wrap=True)
        if saved := jobs.record.checkpoint:
            out.print(f"{jobs.folder}/{saved.folder} ({saved.format})", soft_wrap=True)
        elif jobs.record.patch and (formats := jobs.record.patch.formats):
            out.print(
                f"save_model=true would save it; save_format can be {', '.join(formats)} (docs/saving.md)",
                soft_wrap=True,
            )
    return 0


def _print_sweep(plan: Plan, outcomes: Sequence[Outcome]) -> int:
    """Print what the runs measured and what became of each."""
    from linearpatch.report.run_table import sweep_tables
    from linearpatch.report.terminal import rich_table
    from linearpatch.sweep.tables import outcomes_table

    records = [outcome.record for outcome in outcomes]
    for table in sweep_tables(records):
        out.print(rich_table(table, f"linearpatch report {plan.folder}"))
    out.print(outcomes_table(outcomes))
    out.print(f"{plan.folder}/*/result.json", soft_wrap=True)
    return 0 if all(record.status == "completed" for record in records) else 1
