"""Tokens of massive norm, such as special ones, don't own a fit: neither runs of them nor single ones."""

import random

import pytest
import torch
from conftest import tiny_model
from edits import repaired, view_of

from linearpatch.calibration.gram import Gram
from linearpatch.calibration.statistics import LayerInput
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.reader import Calibration, Text
from linearpatch.models.decoder import decoder_of
from linearpatch.models.random import byte_tokenizer
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.penalty import Penalty
from linearpatch.patches.refit import Refit
from linearpatch.patches.rotate import Rotate

REMOVED = [2, 3]
SPECIAL = "\0"
ROBUST = [
    Refit(),
    MlpRefit(),
    LeastSquares(bias=True, weighting="capped"),
    LeastSquares(weighting="relative"),
    Rotate(),
]


def massive_model():
    """A model whose special token has a stream a thousand times as long as the others'."""
    model = tiny_model()
    model.get_input_embeddings().weight.data[byte_tokenizer()(SPECIAL).input_ids] *= 1000
    return decoder_of(model)


def text(share: float, length: int) -> list[str]:
    """Random documents; so large a share of the tokens are runs of the special one, of such a length."""
    generator = random.Random(0)
    documents = ["".join(chr(generator.randint(33, 126)) for _ in range(200)) for _ in range(60)]
    runs = round(share / (1 - share) * 200 * len(documents) / length)
    return [document + SPECIAL * length * (index < runs) for index, document in enumerate(documents)]


def test_loss(decoder, patch, documents):
    tokenizer, spec = byte_tokenizer(), Calibration(num_blocks=64, block_length=100).blocks(seed=0)
    blocks = Text(documents, "\n", "mine", "mine/all").cut(spec, tokenizer)
    fitted = repaired(patch, Workspace(decoder, blocks, batch_size=8), REMOVED)
    view = view_of(decoder, REMOVED, fitted)
    ids = torch.randint(35, 120, (8, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = view(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).double()
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()


test_loss.__test__ = False


@pytest.mark.parametrize("patch", ROBUST, ids=repr)
@pytest.mark.slow
def test_runs_of_a_massive_token_cost_nothing(patch):
    decoder = massive_model()
    clean = test_loss(decoder, patch, text(0, 1))
    for share, length in ((0.01, 200), (0.1, 200), (0.4, 400)):
        assert test_loss(decoder, patch, text(share, length)) == pytest.approx(clean, rel=0.03)


@pytest.mark.parametrize(("weighting", "most"), [("capped", 0.02), ("relative", 0.02), ("none", None)])
def test_a_few_massive_tokens_do_not_bend_the_map_of_the_others(weighting, most):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(4, 100, 16, generator=generator)
    after = before @ torch.randn(16, 16, generator=generator)
    expected = after.clone()
    after[:, [0, 50]] = 1000 * torch.randn(4, 2, 16, generator=generator)  # no map of the stream before gives these
    sums = Gram(1, 3, weighting, bias=True).start(num_layers=3)
    sums.observe(LayerInput(1, before))
    sums.observe(LayerInput(3, after))
    ((operator,), _) = LeastSquares(bias=True, weighting=weighting).operators(sums.result(), Penalty(0.0))
    error = (operator(before) - expected).norm() / expected.norm()
    assert error > 1 if most is None else error < most
