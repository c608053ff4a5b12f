"""The same for a model of Llama-3-8B's shape with random weights in bf16: 17 GB of memory, a GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.distill import Case, dense_forward, epoch_of, time_claims
from benchmarks.measure import Claim, time_ratio
from linearpatch.config import compose_experiment
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.units import Interface
from linearpatch.storage.cache import default_cache_dir

SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
REMOVED, KEPT_AFTER = 7, 2
PUBLISHED, PUBLISHED_LENGTH = 5000, 2048  # the paper's training
CPU_LENGTH = 256


def claims() -> list[Claim]:
    """Layers 23 to 29 of 32 removed; on a GPU with the paper's sequences, and its memory and whole time as well."""
    settings = [f"model.settings.{name}={value}" for name, value in SHAPE.items()]
    model = compose_experiment(["model=random", "model.dtype=bfloat16", *settings]).model.load(default_cache_dir())
    cuda = model.decoder.input_device.type == "cuda"
    return claims_on(model, PUBLISHED_LENGTH if cuda else CPU_LENGTH, REMOVED, repeats=10 if cuda else 2)


def claims_on(model: LoadedModel, length: int, removed: int, *, repeats: int) -> list[Claim]:
    """The same for any model, whose last two layers stay; memory and the whole time on a GPU alone.

    Args:
        model: The dense model.
        length: Tokens of a sequence.
        removed: How many layers go.
        repeats: How many times each piece of work is timed.
    """
    decoder = model.decoder
    end = decoder.num_layers - KEPT_AFTER
    ids = torch.randint(3, decoder.vocab_size, (4, length), generator=torch.Generator().manual_seed(0))
    case = Case(decoder, Interface(end - removed, end), LinearMap(torch.eye(decoder.hidden_size)), ids[:2], ids[2:])
    found = time_claims(case, repeats=repeats, gain=1.6)
    return [*found, *_on_gpu(model, case)] if decoder.input_device.type == "cuda" else found


def _on_gpu(model: LoadedModel, case: Case) -> list[Claim]:
    loop = case.loop()
    _, seconds, _ = time_ratio(lambda: loop.advance(), lambda: None, repeats=10)
    minutes = seconds * PUBLISHED / 60
    rate = case.ids.shape[1] / seconds
    peaks = [_peak(lambda: epoch_of(case.loop())), _peak(lambda: dense_forward(model, case.ids[:1].cuda()))]
    return [
        Claim(f"{PUBLISHED:,} sequences of {PUBLISHED_LENGTH:,} tokens", minutes, 10, "min", f"{rate:,.0f} tokens/s"),
        Claim(
            "peak memory of a step / dense forward with head",
            peaks[0] / peaks[1],
            1.25,
            "",
            f"{peaks[0] / 2**30:.1f} GiB / {peaks[1] / 2**30:.1f} GiB, weights included",
        ),
    ]


def _peak(work: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated()
