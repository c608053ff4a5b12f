"""Blocks that are held out beside those of calibration, which stay what they are without."""

from types import SimpleNamespace

import pytest
import torch

from linearpatch.data.blocks import BlockSpec

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
