"""A race of candidates against measuring all of them on all tokens."""

from math import inf

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model

from linearpatch.calibration.candidate_losses import CandidateSearch
from linearpatch.calibration.race import PIECE, race
from linearpatch.models.decoder import decoder_of
from linearpatch.models.edit import Edit

EDITS = [Edit.of_layers([layer]) for layer in range(NUM_LAYERS)]


@pytest.fixture
def search():
    tokens = torch.randint(3, 300, (8, 1, 40), generator=torch.Generator().manual_seed(5))
    return CandidateSearch(decoder_of(tiny_model()), list(tokens))


def exact(search):
    return [torch.cat([search.token_losses(edit, batch).double().flatten() for batch in range(8)]) for edit in EDITS]


def test_without_a_limit_all_are_measured_on_all_tokens(search):
    losses = exact(search)
    best = min(losses, key=torch.mean)
    for standing, mine in zip(race(search, EDITS, noise=inf), losses, strict=True):
        assert standing.is_contender
        assert standing.share == 1
        assert standing.loss == pytest.approx(mine.mean().item(), rel=1e-6)
        pieces = (mine - best).view(8, -1).mean(dim=1)  # blocks are shorter than a piece
        assert standing.stderr == pytest.approx((pieces.std() / 8**0.5).item(), rel=1e-6)


def test_who_is_behind_beyond_noise_drops_out_and_the_best_stays(search):
    ran = []
    token_losses = search.token_losses
    search.token_losses = lambda edit, batch: ran.append((EDITS.index(edit), batch)) or token_losses(edit, batch)
    standings = race(search, EDITS, noise=2.0)
    losses = exact(search)
    best = min(range(NUM_LAYERS), key=lambda index: losses[index].mean())
    assert standings[best].is_contender
    assert standings[best].stderr == 0
    assert any(one.share < 1 for one in standings)
    for index, one in enumerate(standings):
        difference = (losses[index] - losses[best]).view(8, -1).mean(dim=1)[: round(8 * one.share)]
        assert one.loss == pytest.approx(losses[best].mean().item() + difference.mean().item(), rel=1e-6)
        number = len(difference)
        assert one.is_contender == (index == best or (difference.mean() <= 2 * difference.std() / number**0.5).item())
        assert one.share == 1 or not one.is_contender
    assert len([one for one in ran[: -NUM_LAYERS * 8] if one[0] == best]) == 8  # of `exact` the rest


def test_a_candidate_whose_loss_is_not_finite_drops_out_at_once(search):
    search.token_losses = lambda edit, batch: torch.full((1, 39), inf if edit is EDITS[0] else 2.0)
    standings = race(search, EDITS[:3], noise=3.0)
    assert [one.share for one in standings] == [1 / 8, 1, 1]
    assert [one.is_contender for one in standings] == [False, True, True]
    assert standings[0].loss == inf
    assert [one.loss for one in standings[1:]] == [2.0, 2.0]


def test_pieces_are_of_one_block_and_the_last_takes_what_is_left():
    length = 2 * PIECE + 11
    losses = torch.rand(2, length, generator=torch.Generator().manual_seed(1))
    search = CandidateSearch(decoder_of(tiny_model()), [torch.ones(2, length + 1, dtype=torch.long)])
    search.token_losses = lambda edit, batch: losses if edit is EDITS[0] else losses + 1
    best, other = race(search, EDITS[:2], noise=inf)
    assert best.loss == pytest.approx(losses.mean().item(), rel=1e-2)  # pieces differ by a token
    assert other.loss == pytest.approx(best.loss + 1)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_size_of_batches_does_not_matter(search, size):
    blocks = torch.cat(search.batches)
    batched = CandidateSearch(search.decoder, blocks.split(size))
    for one, other in zip(race(search, EDITS, noise=1.0), race(batched, EDITS, noise=1.0), strict=True):
        assert (one.share, one.is_contender) == (other.share, other.is_contender)
        assert one.loss == pytest.approx(other.loss, rel=1e-4)


def test_without_a_finite_loss_all_are_infinite(search):
    search.token_losses = lambda edit, batch: torch.full((1, 39), inf)
    assert [one.loss for one in race(search, EDITS[:3], noise=3.0)] == [inf] * 3
