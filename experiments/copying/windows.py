"""What each window of layers costs: divergence from the dense model on plain text, and where a passage stands twice.

    python experiments/copying/windows.py 3 validation.jsonl

Each window of so many layers is bridged by the draft of a search (`lstsq`), fitted on ten blocks of the text of a JSON
Lines file; the divergence is measured on the two blocks that follow, and on their copies.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import linearpatch as lp
from linearpatch.calibration.candidate_edits import CandidateEdits
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.tokens import tokens
from linearpatch.evaluation.dense_states import DenseStates
from linearpatch.evaluation.divergence import divergence_from_dense
from linearpatch.models.decoder import decoder_of
from linearpatch.patches.refit import Refit

BLOCKS, HELD_OUT, LENGTH = 10, 2, 1024
SETTLED = 4  # tokens of the second passage before a model can have noticed that it is one


def main(num_layers: int, file: Path) -> None:
    """Print a table of all windows of a size."""
    model, tokenizer = lp.load_model("smollm2_135m")
    dense = decoder_of(model.float())
    data = tokens(file, tokenizer, BLOCKS, LENGTH, held_out=HELD_OUT, sampling="first")
    assert data.held_out is not None
    plain, passage = data.held_out.ids, (LENGTH + 1) // 2
    copies = data.held_out.with_copies(HELD_OUT).ids[1::2]
    workspace = Workspace(dense, data.blocks, held_out=data.held_out)
    windows = [range(start, start + num_layers) for start in range(1, dense.num_layers - num_layers)]
    edits = CandidateEdits(workspace, Refit().draft()).edits(windows)
    states = [DenseStates(dense, ids) for ids in (plain, copies)]
    table = Table("removed", "plain text", "a passage, first time", "second time", caption="KL divergence, nats")
    for window, edit in zip(windows, edits, strict=True):
        on_plain, on_copies = (divergence_from_dense(one, edit.decoder(dense))[0] for one in states)
        parts = (on_plain, on_copies[:, :passage], on_copies[:, passage + SETTLED : 2 * passage - 1])
        table.add_row(f"{window[0]}–{window[-1]}", *(f"{part.mean():.3f}" for part in parts))
    Console().print(table)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(int(sys.argv[1]), Path(sys.argv[2]))
