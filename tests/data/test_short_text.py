"""Texts that are shorter than what was asked for, and the slices of a user's own text."""

import pytest

from linearpatch.data.blocks import BlockSpec
from linearpatch.data.corpus import take_share
from linearpatch.data.files import TextCorpus
from linearpatch.data.reader import Reader
from linearpatch.errors import DataError
from linearpatch.models.random import byte_tokenizer

WORDS = "one two three four five six seven eight nine ten eleven twelve "


def adapting(num_blocks, length, **settings):
    return BlockSpec(num_blocks, length, **{"sampling": "windows", "short_text": "adapt", **settings})


@pytest.mark.parametrize(
    ("num_tokens", "held_out", "expected"),
    [
        (46 * 1024, 6, (40, 1024, 6)),  # enough: as asked
        (46 * 1024 - 1, 6, (39, 1024, 6)),
        (5 * 1024, 6, (4, 1024, 1)),
        (4 * 1024 - 1, 6, (6, 512, 1)),  # fewer than four blocks: shorter ones
        (600, 6, (3, 128, 1)),
        (128, 6, (3, 32, 1)),
        (700, 0, (5, 128, 0)),
    ],
)
def test_blocks_become_fewer_and_then_shorter(num_tokens, held_out, expected):
    spec, kept = adapting(40, 1024).adapted(num_tokens, held_out)
    assert (spec.num_blocks, spec.block_length, kept) == expected
    assert (spec.num_blocks + kept) * spec.block_length <= num_tokens


def test_an_error_stays_one():
    spec = BlockSpec(40, 1024, "windows")
    assert spec.adapted(600, 6) == (spec, 6)
    with pytest.raises(DataError, match="40 needed"):
        spec.cut([WORDS * 10], "\n\n", byte_tokenizer(), "mine")


def test_crops_of_a_short_text_read_each_token_a_few_times():
    spec, kept = adapting(5000, 2048, sampling="crops").adapted(600, 16)
    assert (spec.num_blocks, spec.block_length, kept) == (12, 128, 1)


@pytest.mark.parametrize("cut", ["cut", "cut_beside", "cut_apart"])
def test_every_cut_adapts_and_shares_no_token(cut):
    more = (2,) if cut == "cut_apart" else ()
    words = " ".join(map(str, range(300)))
    found = getattr(adapting(40, 1024), cut)([words], "\n\n", byte_tokenizer(), "mine", *more)
    blocks, held_out = (found, None) if cut == "cut" else found
    assert blocks.ids.shape[1] == 256
    kept = [block.tolist() for part in (blocks, held_out) if part is not None for block in part.ids]
    text = byte_tokenizer()(words).input_ids
    assert sum(text[at : at + 256] in kept for at in range(len(text))) == len(kept)
    assert "tokens are too few for 40 blocks of 1,024 tokens" in adapting(40, 1024).shortage(blocks)


def test_nothing_is_said_of_a_text_that_is_long_enough():
    spec = adapting(4, 64)
    assert spec.shortage(spec.cut([WORDS * 20], "\n\n", byte_tokenizer(), "mine")) is None


def test_a_text_of_a_few_words_is_rejected():
    with pytest.raises(DataError, match=r"too few for one block of 32\. Use a longer text"):
        adapting(40, 1024).cut(["two words"], "\n\n", byte_tokenizer(), "mine")


def test_own_text_adapts_and_published_protocols_do_not(tmp_path):
    (tmp_path / "mine.txt").write_text(WORDS * 100)
    corpus = TextCorpus(path=str(tmp_path / "mine.txt"))
    assert len(Reader(corpus, "calibration").read(BlockSpec(40, 1024, "windows"), byte_tokenizer()).ids) < 40
    exact = TextCorpus(path=str(tmp_path / "mine.txt"), short_text="error")
    with pytest.raises(DataError, match="40 needed"):
        Reader(exact, "calibration").read(BlockSpec(40, 1024, "windows"), byte_tokenizer())


SPLITS = ("all[:30%]", "all[30%:60%]", "all[60%:]")


@pytest.mark.parametrize(
    "documents",
    [
        [WORDS * 50],
        ["no_white_space" * 100],
        [WORDS, "", WORDS * 3, "  ", "end"],
        [WORDS] * 40,
        [[{"role": "user", "content": word}] for word in WORDS.split()],
    ],
)
def test_slices_share_nothing_and_lose_nothing(documents):
    parts = [take_share(documents, split) for split in SPLITS]
    if isinstance(documents[0], str):
        whole = "".join(documents).split()
        assert "".join("".join(map("".join, parts)).split()) == "".join(whole)
    else:
        assert [chat for part in parts for chat in part] == documents


def test_one_long_paragraph_is_divided_at_white_space():
    parts = [take_share([WORDS * 50], split)[0] for split in SPLITS]
    sizes = [len(part) / len(WORDS * 50) for part in parts]
    assert sizes == pytest.approx([0.3, 0.3, 0.4], abs=0.01)
    assert all(word in WORDS.split() for part in parts for word in part.split())
