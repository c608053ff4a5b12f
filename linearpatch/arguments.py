"""The arguments of the command line. Nothing heavy is imported: help, version and completion come at once."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from linearpatch.bench import BENCHMARKS, LARGE
from linearpatch.completion import complete_group, complete_override

EPILOG = """\
examples:
  linearpatch run                                       prune the embedded model by the defaults
  linearpatch run pruner=sleb num_pruned_layers=7       override a choice and a value
  linearpatch run model=./folder                        a model of yours; model=org/name is one of the hub
  linearpatch run -m pruner=sleb,shortgpt patch=none,rotate     every combination
  linearpatch run -m pruner=sleb,shortgpt --dry-run     what a sweep would do
  linearpatch run --cfg job                             print the configuration and stop
  linearpatch run 'eval=[ppl,smoke,speed]'              measure more than perplexity
  linearpatch run save_model=true output_dir=small      write the pruned, patched model to small/model
  linearpatch status outputs                            how far the runs of a sweep are
  linearpatch report outputs                            tables, figures and a page that compare its runs
  linearpatch generate small "The sea is"               continue a text with it
  linearpatch list pruner                               every pruner with a line about it

completion of commands, choices and settings in bash (zsh: after autoload -U bashcompinit && bashcompinit):
  eval "$(register-python-argcomplete linearpatch)"
"""


def command_parser() -> argparse.ArgumentParser:
    """All commands. `run` is parsed again by `run_parser`, which takes flags and overrides in any order."""
    parser = argparse.ArgumentParser(
        prog="linearpatch",
        description="Remove layers from a language model, patch the gap, measure what is left.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"linearpatch {package_version()}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "run", parents=[run_parser()], add_help=False, help="one experiment, or with -m a sweep: see run --help"
    )
    _add_generate(commands.add_parser("generate", help="continue a text with a saved model"))
    listing = commands.add_parser("list", help="every choice of a group, or of all groups")
    listing.add_argument("group", nargs="?", help="such as pruner").completer = complete_group  # type: ignore[attr-defined]
    benching = commands.add_parser("bench", help="measure a claim about speed or memory")
    benching.add_argument(
        "name", help=f"{', '.join(BENCHMARKS)}, or all of these; {' or '.join(LARGE)} only by name"
    ).completer = lambda **_: [*BENCHMARKS, *LARGE, "all"]  # type: ignore[attr-defined]
    _add_report(commands.add_parser("report", help="compare runs: tables, figures, an interactive page"))
    watching = commands.add_parser("status", help="how far the runs of a folder are")
    watching.add_argument("folder", help="the output_dir of a sweep or of a run")
    watching.add_argument("--once", action="store_true", help="print the table and stop, as where there is no terminal")
    _add_cache(commands.add_parser("cache", help="look after what is kept between runs"))
    commands.add_parser("doctor", help="what this machine has and lacks")
    return parser


def run_parser() -> argparse.ArgumentParser:
    """The arguments of `linearpatch run`: Hydra's, and `--dry-run`."""
    parser = argparse.ArgumentParser(prog="linearpatch run", add_help=False, allow_abbrev=False)
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
    return parser


def package_version() -> str:
    """Of this package, where it is installed."""
    try:
        return version("linearpatch")
    except PackageNotFoundError:
        return "(not installed)"


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a checkpoint, or the folder of the run that wrote it")
    parser.add_argument("prompt", help="text to continue; - reads it from standard input")
    parser.add_argument("--chat", action="store_true", help="answer the prompt, by the tokenizer's chat template")
    parser.add_argument("--base", help="for an adapter: the dense model, a choice of `linearpatch list model`, "
                        "a hub id or a folder")  # fmt: skip
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16; auto is the checkpoint's")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto is the first GPU, else the CPU")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="tokens to write at most (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (%(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="share of probability to sample (%(default)s)")
    parser.add_argument("--num-beams", type=int, default=1, help="beam search, printed at the end (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (%(default)s)")
    parser.add_argument("--no-cache", action="store_true", help="recompute keys and values for every token")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, or a folder with runs below it")
    parser.add_argument("--output", type=Path, help="where the report goes (report/ in the first DIR)")
    parser.add_argument("--title", help="its head; by default the models")
    parser.add_argument("--published", type=Path, metavar="CSV", help="published figures to stand beside measured ones")
    parser.add_argument("--wandb", action="store_true", help="put the same comparison on Weights & Biases as well")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("ls", "rm", "verify"), help="list it, remove some of it, find damage")
    parser.add_argument("kind", nargs="?", help="for rm: a kind that ls lists, or all")
    parser.add_argument("--older-than", type=float, default=0, metavar="DAYS", help="for rm: only such entries")
    parser.add_argument("--yes", action="store_true", help="for rm: don't ask whether to remove what is listed")
    parser.add_argument("--dir", type=Path, help="the cache; by default LINEARPATCH_CACHE or the user's")
