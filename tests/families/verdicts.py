"""What works for every decoder-only family of transformers, tried on tiny random models; writes `docs/families.md`.

    PYTHONPATH=tests python tests/families/verdicts.py [FAMILY ...]      print verdicts
    PYTHONPATH=tests python tests/families/verdicts.py --write FILE      try all of them and write the table

A family is exact when, without layer [1] and without layers [2, 5] of eight: the pruned model is the dense one that
skips them; a checkpoint loads, in transformers alone, as the model that was measured; generation with a cache is
generation without; and the perplexity that is recorded is the one computed by hand from the checkpoint. Otherwise it
is rejected, by a `LinearPatchError` that says why. Anything else is a fault and ends the program with status 1.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from edits import edit_of, view_of
from tiny import NUM_LAYERS, model_of
from torch.nn.functional import cross_entropy
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import linearpatch
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import LinearPatchError
from linearpatch.evaluation.perplexity import window_losses
from linearpatch.models.auto import auto_class
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import ready
from linearpatch.models.random import byte_tokenizer
from linearpatch.models.rebuilding import check_removal

REMOVED = ([1], [2, 5])
SECONDS = 60
TOKENS = torch.randint(3, 259, (2, 24), generator=torch.Generator().manual_seed(3))
# Decoders with a vision encoder in front: not in transformers' list of causal language models.
MULTIMODAL = ("mistral3", "qwen2_vl", "qwen2_5_vl", "llava", "qwen3_vl")
EXACT, ADAPTER, REJECTED, UNTRIED = "exact", "adapter only", "rejected", "not tried"


@dataclass(frozen=True)
class Verdict:
    """What works for one family.

    Attributes:
        family: Its `model_type`.
        kind: `exact`, `adapter only`, `rejected` or `not tried`.
        reason: Why not more.
    """

    family: str
    kind: str
    reason: str = ""


def families() -> list[str]:
    """All that are tried."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MULTIMODAL})


def verdict_on(family: str) -> Verdict:
    """Build a tiny model of a family, remove layers, and see what happens; an AssertionError is a fault."""
    try:
        model = model_of(family)
    except Exception as error:
        return Verdict(family, UNTRIED, f"no tiny model on the CPU: {type(error).__name__}: {_line(error, 160)}")
    try:
        with TemporaryDirectory() as scratch:
            # As users have it: from a checkpoint, not fresh from its class.
            model.save_pretrained(Path(scratch) / "dense")
            dense = ready(_load(Path(scratch) / "dense"), byte_tokenizer(), "0123456789abcdef")
            assert dense.decoder.num_layers == NUM_LAYERS
            for removed in REMOVED:
                _try_view(dense.decoder, removed)
            unsaved = ""
            for removed in REMOVED:
                unsaved = _try_saving(dense, removed, Path(scratch)) or unsaved
    except LinearPatchError as error:
        return Verdict(family, REJECTED, _line(error, 2000))
    return Verdict(family, ADAPTER if unsaved else EXACT, unsaved)


def _try_view(dense: Any, removed: Sequence[int]) -> None:
    view = view_of(dense, removed)
    check_removal(dense, view, removed)
    with _skipping(dense, removed):
        _assert_close(_logits(view), _logits(dense.model), f"view without {removed} against skipped layers")
    _assert_close(_logits(dense.model), _logits(decoder_of(dense.model).model), "dense")
    try:
        comparable = _generates_alike(dense.model)
    except (RuntimeError, ValueError):  # the family itself doesn't generate
        comparable = False
    if comparable:
        assert _generates_alike(view), f"generation without {removed} differs with a cache"


def _generates_alike(model: Any) -> bool:
    """Whether a model generates the same with a cache and without."""
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS)
    cached, uncached = (
        model.generate(TOKENS, attention_mask=mask, use_cache=use_cache, **settings) for use_cache in (True, False)
    )
    return torch.equal(cached, uncached)


def _try_saving(dense: Any, removed: Sequence[int], scratch: Path) -> str:
    view = view_of(dense.decoder, removed)
    expected = _logits(view)
    save_checkpoint(scratch / "adapter", dense, edit_of(removed), save_format="adapter")
    adapted = linearpatch.apply(_load(scratch / "dense"), scratch / "adapter")
    _assert_close(_logits(adapted), expected, "adapter")
    try:
        save_checkpoint(scratch / "model", dense, edit_of(removed))
    except LinearPatchError as error:
        return _line(error, 2000)
    reloaded = _load(scratch / "model")
    _assert_close(_logits(reloaded), expected, "reload")
    recorded = window_losses(decoder_of(view), TOKENS).mean().exp().item()
    losses = [cross_entropy(_logits(reloaded, row[None])[0, :-1].float(), row[1:]) for row in TOKENS]
    by_hand = torch.stack(losses).double().mean().exp().item()
    assert abs(recorded - by_hand) <= 1e-4 * by_hand, (
        f"perplexity {recorded} is recorded, {by_hand} is that of the reload"
    )
    return ""


def _load(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    model, info = auto_class(config).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], f"missing keys {sorted(info['missing_keys'])[:3]}"
    return model.eval()


@contextmanager
def _skipping(dense: Any, removed: Sequence[int]) -> Iterator[None]:
    """While open, some layers hand on what they read."""

    def hand_on(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = [dense.layers[index].register_forward_hook(hand_on, with_kwargs=True) for index in removed]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def _logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def _assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    assert actual.isfinite().all(), f"{what}: not finite"
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5, f"{what}: logits differ by {error:.1e} of the largest"


def _line(error: object, length: int) -> str:
    return " ".join(str(error).split())[:length]


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main(arguments: Sequence[str]) -> int:
    """Try families, print verdicts as they come, and write the table where asked."""
    file = Path(arguments[1]) if arguments[:1] == ["--write"] else None
    verdicts, faults = [], 0
    for family in families() if file or not arguments else arguments:
        started = time.monotonic()
        try:
            with _limit(SECONDS):
                verdict = verdict_on(family)
        except Exception as error:
            faults += 1
            verdict = Verdict(family, "FAULT", f"{type(error).__name__}: {_line(error, 300)}")
        verdicts.append(verdict)
        seconds = time.monotonic() - started
        print(f"{family:28} {verdict.kind:13} {seconds:5.1f} s  {verdict.reason}", flush=True)  # noqa: T201
    if file and not faults:
        from table import table_of

        file.write_text(table_of(verdicts), encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
