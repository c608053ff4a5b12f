"""Memory that a search and a refit need on a device beside the weights: counted at 13B, and checked at 1B's width.

On a GPU the sums of products of a pass and the operators of a search are beside the weights; results go to CPU memory,
and kept streams do where the GPU has no room for them. What the count says of a pass is checked on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import Claim, in_own_process
from linearpatch.calibration.gram import FP64_BYTES, RefitGram
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.random import RandomModel
from linearpatch.runtime.memory import peak_growth

MIB = 2**20
LENGTH = 1024  # of a block, as the recommended recipe reads it
ROW_COPIES = 4  # of the rows x of a batch in fp64: their parts, joined, with a 1, and weighted


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int

    @property
    def weight_bytes(self) -> int:
        """Of all weights in bfloat16, embeddings and head apart."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.inner
        return 2 * (self.layers * layer + 2 * self.vocabulary * self.hidden)

    @property
    def refit_bytes(self) -> int:
        """Of the sums of products of one refit, which is the least that exists at a time."""
        columns = self.hidden + self.inner + 1
        return FP64_BYTES * columns * (columns + self.hidden)

    @property
    def batch_bytes(self) -> int:
        """What a batch needs while it is added to these sums."""
        return ROW_COPIES * FP64_BYTES * LENGTH * (self.hidden + self.inner + 1)

    def draft_bytes(self, removed: int) -> int:
        """Of the maps of all windows that a search compares, in bfloat16."""
        return 2 * (self.layers - removed + 1) * self.hidden**2


LLAMA_13B = Shape(hidden=5120, inner=13824, layers=40, vocabulary=32000)
LLAMA_1B = Shape(hidden=2048, inner=8192, layers=3, vocabulary=300)  # three of its layers: a pass needs no more
REMOVED = 8


def claims() -> list[Claim]:
    """At 13B at most 1.3 × the weights and a batch; at 1B's width what was counted, within a tenth."""
    large = LLAMA_13B
    needed = large.weight_bytes + large.draft_bytes(REMOVED) + large.refit_bytes + large.batch_bytes
    allowed = large.weight_bytes + large.batch_bytes
    counted = LLAMA_1B.refit_bytes + LLAMA_1B.batch_bytes
    measured = in_own_process(_run_pass)
    return [
        Claim(
            "search and refit of a 13B model in bfloat16: memory / weights and a batch (counted)",
            needed / allowed, 1.3, "", f"{needed / 2**30:.1f} GiB / {allowed / 2**30:.1f} GiB, {REMOVED} of 40 layers",
        ),
        Claim(
            "pass for a refit at 1B's width: growth of memory / counted",
            measured / counted, 1.1, "", f"{measured / MIB:,.0f} / {counted / MIB:,.0f} MiB, {LENGTH} tokens at a time",
        ),
    ]  # fmt: skip


def _run_pass(sender) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Send the bytes by which memory grows in a pass for a refit."""
    shape = LLAMA_1B
    settings = {
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": shape.vocabulary,
    }  # fmt: skip
    model = RandomModel(settings=settings, dtype="bfloat16").load(Path())
    statistic = RefitGram(1, 2, "capped")
    assert statistic.sum_bytes(model.decoder) == shape.refit_bytes
    ids = torch.randint(shape.vocabulary, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    Workspace(model.decoder, TokenBlocks(ids[:, :64], "warm-up")).collect(RefitGram(1, 2))
    workspace = Workspace(model.decoder, TokenBlocks(ids, "random"))
    growth = peak_growth(lambda: workspace.collect(statistic), torch.device("cpu"))
    assert growth is not None
    sender.send(growth)
