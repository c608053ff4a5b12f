"""Long repetitions, and the massive activations that come with them, don't own what is fitted."""

import pytest
import torch
from conftest import tiny_model

from linearpatch.calibration.gram import Gram, MlpGram, RefitGram
from linearpatch.calibration.positions import informative
from linearpatch.calibration.statistics import Magnitude, MagnitudeRatio, WindowCosine
from linearpatch.calibration.suffix import DENSE, SuffixSearch
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.decoder import decoder_of
from linearpatch.models.passes import record
from linearpatch.models.views import view_of
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.refit import Refit
from linearpatch.patches.rotate import Rotate

SPECIAL = 2
LENGTH = 100


@pytest.mark.parametrize(
    ("ids", "left_out"),
    [
        ([*range(5, 30), *range(5, 30)], []),
        ([5, 6, *[0] * 16, 7, 8], []),  # 15 repeat the one before
        ([5, 6, *[0] * 17, 7, 8], range(3, 19)),
        ([*[0] * 40], range(1, 40)),
        ([9, *[0, 1] * 9, 7], range(3, 19)),
        ([9, *[0, 1, 2, 3] * 5, 7], range(5, 21)),
        ([9, *[0, 1, 2, 3, 4] * 5, 7], []),
        ([5, *[0] * 20, 6, *[0] * 3, 7], range(2, 21)),
    ],
)
def test_what_repeats_the_tokens_before_it_does_not_count(ids, left_out):
    counted = informative(torch.tensor([ids, list(range(50, 50 + len(ids)))]))
    assert (~counted[0]).nonzero().flatten().tolist() == list(left_out)
    assert counted[1].all()


def test_blocks_shorter_than_any_period_count():
    assert informative(torch.tensor([[3, 3]])).all()


def text(count, seed, share=0.0):
    """Random blocks whose last tokens, so large a share, are one special token; what comes before is the same."""
    ids = torch.randint(3, 300, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    if share:
        ids[:, -round(share * LENGTH) :] = SPECIAL
    return TokenBlocks(ids, "random")


def massive_model():
    """A model whose special token has a stream a thousand times as long as the others'."""
    model = tiny_model()
    model.get_input_embeddings().weight.data[SPECIAL] *= 1000
    return decoder_of(model)


def test_statistics_see_only_tokens_that_count():
    decoder = massive_model()
    blocks = text(3, 8, share=0.4)
    counted = informative(blocks.ids)
    assert 0 < (~counted).sum() < blocks.ids.numel()
    streams = [stream.double() for _, stream in sorted(record(decoder, blocks.ids).streams.items())]
    rows = [stream[counted] for stream in streams]
    wanted = [Gram(1, 4), MlpGram(1, 4), RefitGram(1, 4), Magnitude(), MagnitudeRatio(1, 4), WindowCosine(3)]
    gram, mlp, refit, magnitude, ratio, cosine = Workspace(decoder, blocks, batch_size=2).collect(*wanted)
    assert torch.allclose(gram["xx"], rows[1].T @ rows[1], rtol=1e-4)
    assert torch.allclose(gram["xy"], rows[1].T @ rows[4], rtol=1e-4, atol=1e-2)
    assert {int(one["count"]) for one in (gram, mlp, refit)} == {int(counted.sum())}
    assert torch.allclose(magnitude["magnitude"][4], rows[4].abs().mean(0), rtol=1e-4)
    sums = [
        [stream[index][mask].abs().sum(0) for index, mask in enumerate(counted)] for stream in (streams[1], streams[4])
    ]
    expected = torch.stack([after / before for before, after in zip(*sums, strict=True)]).mean(0)
    assert torch.allclose(ratio["ratio"], expected, rtol=1e-4)
    expected = torch.cosine_similarity(rows[1], rows[4], dim=-1).mean()
    assert cosine["cosine"][1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_losses_count_only_such_tokens():
    decoder = massive_model()
    blocks = text(3, 9, share=0.4)
    with torch.no_grad():
        logits = decoder.model(input_ids=blocks.ids, use_cache=False).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2).double(), blocks.ids[:, 1:], reduction="none")
    (loss,) = SuffixSearch(decoder, [blocks.ids]).losses([DENSE])
    assert loss.loss == pytest.approx(each[informative(blocks.ids)[:, 1:]].mean().item(), rel=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.4])
@pytest.mark.parametrize("patch", [Refit(), LeastSquares(), LeastSquares(bias=True, gain=1.15), Rotate()], ids=repr)
def test_a_fit_does_not_depend_on_runs_of_a_massive_token(patch, share):
    """Without the special token the text is the same, so its loss must be: a run leaves one token of its own."""
    decoder, removed = massive_model(), [2, 3]
    test = text(8, 10)
    losses = []
    for padded in (0.0, share):
        length = LENGTH - round(share * LENGTH)
        blocks = text(48, 8, padded) if padded else TokenBlocks(text(48, 8).ids[:, : length + 1], "random")
        if not padded:
            blocks.ids[:, -1] = SPECIAL
        fitted = patch.repair(Workspace(decoder, blocks, batch_size=8), removed)
        view = view_of(decoder, removed, [(one.site, one.module) for one in fitted])
        with torch.no_grad():
            logits = view(input_ids=test.ids, use_cache=False).logits[:, :-1].flatten(0, 1).double()
        losses.append(torch.nn.functional.cross_entropy(logits, test.ids[:, 1:].flatten()).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
