"""Long repetitions are left out of text that is fitted or trained on, and of no other."""

import pytest
import torch

from linearpatch.data.blocks import BlockSpec
from linearpatch.data.reader import Calibration, DistillationText, Text
from linearpatch.data.repetitions import Repetitions, repeats, without_repetitions
from linearpatch.models.random import byte_tokenizer

PADDING = "\0"
RUN = 300


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
        ([3, 3], []),
        ([], []),
    ],
)
def test_what_repeats_the_tokens_before_it_is_left_out(ids, left_out):
    tokens = torch.tensor(ids, dtype=torch.long)
    assert repeats(tokens).nonzero().flatten().tolist() == list(left_out)
    kept, found = without_repetitions(tokens)
    assert kept.tolist() == [token for index, token in enumerate(ids) if index not in left_out]
    assert (found.count, found.total) == (len(left_out), len(ids))
    assert found.token in (None, *(ids[index] for index in left_out))


def documents() -> list[str]:
    """Lines of which none repeats another."""
    return [f"{number} is {number * number:x}, and its cube {number**3:x}. " for number in range(400)]


def padded() -> list[str]:
    return [text + PADDING * RUN if index % 3 == 0 else text for index, text in enumerate(documents())]


@pytest.mark.parametrize(
    "text", [Calibration(num_blocks=8, block_length=64), DistillationText(num_blocks=8, block_length=64)], ids=repr
)
def test_padding_changes_nothing_but_one_token_a_run(text):
    """As text with one such token, for the rules that say which blocks are taken as for those of each token."""
    single = [text.replace(PADDING * RUN, PADDING) for text in padded()]
    spec, tokenizer = text.blocks(seed=3), byte_tokenizer()
    mine = [Text(read, "\n", "mine", "mine/all") for read in (padded(), single)]
    assert mine[0].cut(spec, tokenizer).hash == mine[1].cut(spec, tokenizer).hash
    assert [part.hash for part in mine[0].cut_apart(spec, tokenizer, 2)] == [
        part.hash for part in mine[1].cut_apart(spec, tokenizer, 2)
    ]
    assert [part.hash for part in mine[0].cut_beside(spec, tokenizer) if part] == [
        part.hash for part in mine[1].cut_beside(spec, tokenizer) if part
    ]
    total = sum(map(len, padded())) + len(padded()) - 1
    runs = len(range(0, len(padded()), 3))
    for blocks in (mine[0].cut(spec, tokenizer), *mine[0].cut_apart(spec, tokenizer, 2)[:1]):
        assert blocks.repetitions == Repetitions(runs * (RUN - 1), total, *tokenizer(PADDING).input_ids)


def test_crops_of_documents_have_none():
    spec = Calibration(num_blocks=8, block_length=32, sampling="document_crops").blocks(seed=0)
    long = ["".join(documents()[start : start + 4]) + PADDING * RUN for start in range(0, 400, 4)]
    blocks = Text(long, "\n", "mine", "mine/all").cut(spec, byte_tokenizer())
    assert not any(repeats(block).any() for block in blocks.ids)


def test_text_that_is_evaluated_on_is_read_as_it_is():
    blocks = BlockSpec(None, 64).cut(padded(), "\n", byte_tokenizer(), "mine/test")
    assert blocks.repetitions == Repetitions()
    assert blocks.available == sum(map(len, padded())) + len(padded()) - 1
