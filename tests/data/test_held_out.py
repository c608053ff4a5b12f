"""Blocks that are held out beside those of calibration, which stay what they are without."""

from types import SimpleNamespace

import pytest
import torch

import linearpatch as lp
from linearpatch.config import compose_experiment
from linearpatch.data.blocks import BlockSpec, TokenBlocks
from linearpatch.errors import ConfigError

TEXT = 1000  # tokens, each another


def tokenizer(text, **_):
    return SimpleNamespace(input_ids=[int(word) for word in text.split()])


def cut_beside(spec, tokens=TEXT):
    return spec.cut_beside([" ".join(map(str, range(tokens)))], "", tokenizer, "numbers")


@pytest.mark.parametrize("sampling", ["first", "windows", "crops"])
@pytest.mark.parametrize(("count", "held"), [(1, 1), (8, 1), (24, 3)])
def test_one_block_for_eight_comes_from_what_the_others_leave(sampling, count, held):
    spec = BlockSpec(count, 10, sampling)
    blocks, held_out = cut_beside(spec)
    assert torch.equal(blocks.ids, spec.cut([" ".join(map(str, range(TEXT)))], "", tokenizer, "numbers").ids)
    assert held_out.ids.shape == (held, 10)
    assert not set(held_out.ids.flatten().tolist()) & set(blocks.ids.flatten().tolist())
    assert held_out.ids.unique().numel() == held_out.ids.numel()
    assert (held_out.ids.diff(dim=1) == 1).all()


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        (BlockSpec(None, 10), 88),
        (BlockSpec(100, 10), 88),
        (BlockSpec(100, 10, "windows"), 88),
        (BlockSpec(5000, 10, "crops"), 5000),
    ],
)
def test_a_text_that_is_read_whole_gives_up_its_end(spec, left):
    blocks, held_out = cut_beside(spec)
    assert len(blocks.ids) == left
    assert not set(held_out.ids.flatten().tolist()) & set(blocks.ids.flatten().tolist())
    assert held_out.ids.max() == TEXT - 1


def test_a_text_of_one_block_has_none_to_spare():
    blocks, held_out = cut_beside(BlockSpec(1, 10), tokens=19)
    assert len(blocks.ids) == 1
    assert held_out is None


@pytest.mark.parametrize(
    ("length", "repeated"), [(8, [0, 1, 2, 3, 1, 2, 3, 1]), (7, [0, 1, 2, 3, 1, 2, 3]), (2, [0, 1])]
)
def test_a_copy_repeats_the_beginning_of_a_block_after_its_first_token(length, repeated):
    blocks = TokenBlocks(torch.arange(2 * length).view(2, length), "text")
    copied = blocks.with_copies(1)
    assert copied.ids.tolist() == [blocks.ids[0].tolist(), repeated, blocks.ids[1].tolist()]
    assert copied.hash != blocks.hash


@pytest.mark.parametrize(
    ("number", "places"), [(0, []), (1, [1]), (2, [1, 5]), (3, [1, 4, 7]), (6, [1, 3, 5, 7, 9, 11])]
)
def test_copies_are_spread_over_the_blocks_each_after_its_own(number, places):
    blocks = TokenBlocks(torch.arange(48).view(6, 8), "text")
    copied = blocks.with_copies(number)
    assert len(copied.ids) == 6 + number
    originals = [row for at, row in enumerate(copied.ids) if at not in places]
    assert torch.equal(torch.stack(originals), blocks.ids)
    for at in places:
        assert torch.equal(copied.ids[at, :4], copied.ids[at - 1, :4])
        assert torch.equal(copied.ids[at, 4:7], copied.ids[at, 1:4])


def test_more_copies_than_blocks_are_rejected():
    with pytest.raises(ConfigError, match=r"at most calibration\.held_out_blocks, which is 4"):
        compose_experiment(["calibration.held_out_blocks=4", "calibration.held_out_copies=5"])


def test_copies_of_no_block_are_rejected():
    words = ["pruner=streamline", "patch=rotate", "patch.compare=false"]
    with pytest.raises(ConfigError, match="this run holds none out"):
        compose_experiment([*words, "calibration.held_out_copies=2"])
    compose_experiment([*words, "calibration.held_out_copies=2", "calibration.held_out_blocks=6"])


def test_copies_of_fewer_blocks_are_a_warning(tmp_path):
    words = ["model=random", "debug=tiny", "pruner=tail", "patch=scalar", "calibration.held_out_copies=5"]
    record = lp.run(*words, "num_pruned_layers=2", "eval=[]", "tracker=none", folder=tmp_path / "R")
    assert record.calibration.held_out["num_blocks"] == 2
    assert any("held_out_copies is 5, and 1 block held out" in warning for warning in record.calibration.warnings)


def test_runs_without_copies_keep_their_names():
    plain, none, two = (
        compose_experiment(["debug=tiny", *words])
        for words in ([], ["calibration.held_out_copies=0"], ["calibration.held_out_copies=2"])
    )
    assert plain.run_id == none.run_id
    assert plain.run_id != two.run_id
