"""Calibration text that patches would fit in place of language is told of with figures; clean text isn't."""

import random
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from linearpatch.data.blocks import BlockSpec
from linearpatch.data.hub import HubCorpus
from linearpatch.data.pydoc import PydocCorpus
from linearpatch.data.quality import repeated_share
from linearpatch.data.reader import Text
from linearpatch.models.random import byte_tokenizer

CLEAN = [*PydocCorpus().documents("calibration")]
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. "


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that knows English documentation."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=6000, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(PydocCorpus().documents("distillation") + CLEAN[:5], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def doubts(tokenizer, documents, num_blocks=16, block_length=512, sampling="windows") -> list[str]:
    spec = BlockSpec(num_blocks, block_length, sampling, drop_repetitions=True)
    text = Text(documents, "\n\n", "mine", "mine/all")
    found = text.warnings(text.cut(spec, tokenizer), spec, tokenizer)
    assert all(doubt.startswith("calibration text mine/all: ") for doubt in found)
    return found


def padded(documents: list[str], share: float) -> list[str]:
    """The documents with so large a share of padding saved with them, as characters of words that average three."""
    return [document + "<end>" * int(share / (1 - share) * len(document) / 3) for document in documents]


def copied(documents: list[str], share: float) -> list[str]:
    size = sum(map(len, documents))
    copies = [documents[3]] * round(share / (1 - share) * size / len(documents[3]))
    mixed = [*documents, *copies]
    random.Random(0).shuffle(mixed)
    return mixed


@pytest.mark.parametrize("sampling", ["first", "windows", "crops"])
@pytest.mark.parametrize("block_length", [64, 512, 1024])
def test_nothing_is_said_of_clean_text(tokenizer, sampling, block_length):
    assert doubts(tokenizer, CLEAN, 16, block_length, sampling) == []
    assert doubts(byte_tokenizer(), CLEAN, 16, block_length, sampling) == []


@pytest.mark.data
@pytest.mark.parametrize("split", ["validation", pytest.param("test", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_nothing_is_said_of_wikitext(datasets_dir, tokenizer, split):
    corpus = HubCorpus(name="w", path="Salesforce/wikitext", config="wikitext-2-v1")
    documents = corpus.documents(split, datasets_dir)
    assert doubts(tokenizer, documents, 64, 1024) == []
    assert doubts(byte_tokenizer(), documents, 64, 1024) == []


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.parametrize("corpus", ["pydoc", "wikitext2_v1"])
def test_nothing_is_said_of_clean_text_with_the_embedded_models_tokenizer(corpus, request):
    from linearpatch.config import compose_experiment

    words = [] if corpus == "pydoc" else [f"datasets_dir={request.getfixturevalue('datasets_dir')}"]
    experiment = compose_experiment([f"corpus={corpus}", "model=smollm2_135m", *words])
    tokenizer = experiment.model.load(experiment.cache_path).tokenizer
    assert doubts(tokenizer, experiment.calibration_reader.open().documents, 16, 1024) == []


@pytest.mark.parametrize("share", [0.03, 0.1, 0.4, 0.9])
@pytest.mark.slow
def test_padding_that_was_saved_with_the_text(tokenizer, share):
    (doubt, *others) = doubts(tokenizer, padded(CLEAN, share))
    figures = re.search(r"(\d+) of its (\d+) .* \((\d+)%\)", doubt.replace(",", ""))
    left_out, total, stated = map(int, figures.groups())
    assert left_out / total == pytest.approx(share, rel=0.25)
    assert stated == round(100 * left_out / total)
    assert "only repeat the tokens before them, most of them '<end>'. They are left out." in doubt
    assert not others


@pytest.mark.parametrize("tokens", [20, 200])
def test_short_runs_that_stand_in_every_document(tokenizer, tokens):
    assert "most of them '<end>'" in doubts(tokenizer, [text[:2000] + "<end>" * tokens for text in CLEAN])[0]


def test_one_token_in_place_of_text(tokenizer):
    mixed = ["".join(f"{character}<end>" for character in text[:3000]) for text in CLEAN]
    assert any("of its tokens are '<end>'" in doubt for doubt in doubts(tokenizer, mixed, 16))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_copies_of_documents(tokenizer, share):
    first, second = doubts(tokenizer, copied(CLEAN, share), 24)
    assert "passages of 32 tokens occurred before" in first
    assert f"({share:.0%} of the text)" in second
    assert "are copies of others" in second


@pytest.mark.parametrize("sampling", ["windows", "crops"])
def test_one_sentence_again_and_again(tokenizer, sampling):
    found = doubts(tokenizer, ["The quick brown fox jumps over the lazy dog. " * 2000], 8, sampling=sampling)
    assert any(re.search(r"9\d%|100% of its passages of 32 tokens", doubt) for doubt in found)
    assert any("a single document (89,999 characters)" in doubt for doubt in found)


def test_white_space_and_blank_documents(tokenizer):
    assert any(
        "are white space" in doubt for doubt in doubts(tokenizer, [f"{text}{' ' * 4 * len(text)}" for text in CLEAN])
    )
    assert doubts(tokenizer, [blank for text in CLEAN for blank in (text, "", " ")]) == []  # WikiText has many


def test_crops_of_too_short_a_text(tokenizer):
    found = doubts(tokenizer, CLEAN[:2], 64, 512, "crops")
    assert any("64 blocks of 512 read each" in doubt and "calibration.num_blocks" in doubt for doubt in found)


def numbered(sentence: str) -> list[str]:
    return [f"{sentence}{number} " * 3 for number in range(300)]


@pytest.mark.parametrize("sentence", [RUSSIAN, "すべての幸福な家庭は互いに似ている。", "ทุกครอบครัวที่มีความสุขนั้นคล้ายคลึงกัน "])
def test_languages_that_the_tokenizer_shreds(tokenizer, sentence):
    found = doubts(tokenizer, numbered(sentence), 4)
    assert any("tokens of a word and" in doubt for doubt in found)
    assert not any("tokens of a word and" in doubt for doubt in doubts(byte_tokenizer(), numbered(sentence), 4))


def test_words_that_the_tokenizer_does_not_know():
    words = {word: index for index, word in enumerate(["<unk>", *(f"w{number}" for number in range(2000))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    known = random.Random(0).choices(list(words)[1:], k=9000)
    documents = [" ".join(known[start : start + 90]) for start in range(0, 9000, 90)]
    assert doubts(tokenizer, documents, 8) == []
    strange = [
        " ".join(f"x{word}" if index % 10 == 0 else word for index, word in enumerate(document.split()))
        for document in documents
    ]
    (doubt,) = doubts(tokenizer, strange, 8)
    assert "10% of them unknown" in doubt


def test_repeated_passages():
    generator = torch.Generator().manual_seed(0)
    block = torch.randint(1000, (1, 64), generator=generator)
    other = torch.randint(1000, (1, 64), generator=generator)
    assert repeated_share(torch.cat([block, other]), 32, across=True) == 0
    assert repeated_share(torch.cat([block, block]), 32, across=True) == 0.5
    assert repeated_share(torch.cat([block, block]), 32, across=False) == 0
    assert repeated_share(block.repeat(1, 2), 32, across=False) == pytest.approx(33 / 97)
    assert repeated_share(torch.full((2, 64), 5), 32, across=True) == 0  # a repetition of one token


def test_a_run_tells_and_records_it(tmp_path, said):
    from small_runs import result, run

    (tmp_path / "mine.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    words = ["corpus@calibration.corpus=text", f"calibration.corpus.path={tmp_path}/mine.txt", "eval=[]"]
    assert run(*words, "calibration.corpus.calibration=all", f"output_dir={tmp_path}/D") == 0
    warnings = result(tmp_path / "D")["calibration"]["warnings"]
    assert any("it is a single document (8,999 characters)" in warning for warning in warnings)
    assert any("passages of 64 tokens occurred before" in warning for warning in warnings)
    told = said()
    assert all(warning in told for warning in warnings)
