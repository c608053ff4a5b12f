"""LinearPatch: remove layers from a language model, patch the gap with one small matrix, measure what is left.

`linearpatch.load` and `linearpatch.apply` give back what a run saved. `linearpatch.config.compose_experiment`
builds an experiment, `linearpatch.run.run` runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linearpatch.checkpoint.loading import apply, load, load_tokenizer

__all__ = ["apply", "load", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that the command line starts without torch."""
    if name in __all__:
        from linearpatch.checkpoint import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
