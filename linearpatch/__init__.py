"""LinearPatch: remove layers from a language model, repair the interface with one small matrix, measure what is left.

`tokens`, `generate_texts`, `prune`, `repair`, `distill`, `evaluate`, `perplexity` and `save` make a smaller model of
one in memory; `load` and `apply` give back what was saved; `run`, `run_sweep`, `frontier` and `compose` take what the
command line takes. See `linearpatch.api` and `linearpatch.commands` for all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linearpatch import patches, pruners
    from linearpatch.api import (
        Tokens,
        apply,
        distill,
        evaluate,
        generate_texts,
        load,
        load_tokenizer,
        perplexity,
        prune,
        repair,
        save,
        tokens,
    )
    from linearpatch.commands import compose, load_model, run, run_sweep
    from linearpatch.frontiers.frontier import frontier

__all__ = [
    "Tokens", "apply", "compose", "distill", "evaluate", "frontier", "generate_texts", "load", "load_model",
    "load_tokenizer", "patches", "perplexity", "prune", "pruners", "repair", "run", "run_sweep", "save", "tokens",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that importing the package, and the command line, need no torch."""
    if name in ("patches", "pruners"):
        return import_module(f"linearpatch.{name}")
    if name in ("compose", "load_model", "run", "run_sweep"):
        return getattr(import_module("linearpatch.commands"), name)
    if name == "frontier":
        return import_module("linearpatch.frontiers.frontier").frontier
    if name in __all__:
        return getattr(import_module("linearpatch.api"), name)
    from linearpatch.errors import suggest

    hint = "" if name.startswith("_") else f". {suggest(name, __all__)}"  # private names are asked for by tools
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return __all__
