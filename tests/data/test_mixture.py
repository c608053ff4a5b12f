"""Several corpora as one text: equal shares everywhere, and no text for two purposes through a part."""

import math

import pytest

from linearpatch.cli import main
from linearpatch.config import compose_experiment
from linearpatch.data.files import TextCorpus
from linearpatch.data.hub import HubCorpus
from linearpatch.data.mixing import MixedDocuments, in_turn, shares
from linearpatch.data.mixture import MixtureCorpus
from linearpatch.data.pydoc import PydocCorpus
from linearpatch.data.reader import Reader, check_disjoint
from linearpatch.errors import ConfigError
from linearpatch.models.random import byte_tokenizer

MIXED = ("corpus=mixture", "~corpus@corpus.parts.wikitext2", "+corpus@corpus.parts.mine=text")


@pytest.fixture
def mixture(tmp_path):
    (tmp_path / "mine.txt").write_text("\n\n".join(f"{'mine ' * (1 + number % 9)}" for number in range(4000)))
    return MixtureCorpus(parts={"mine": TextCorpus(path=str(tmp_path / "mine.txt")), "docs": PydocCorpus()})


@pytest.mark.parametrize("purpose", ["calibration", "distillation", "evaluation"])
def test_every_stretch_has_all_parts_in_equal_shares(mixture, purpose):
    documents = mixture.read(purpose)
    longest = max(map(len, documents))
    mine = sum(len(document) for document in documents if document.startswith("mine"))
    assert abs(2 * mine - sum(map(len, documents))) <= longest
    ahead = 0
    for document in documents:  # nowhere is one ahead of the other by more than a document
        ahead += len(document) if document.startswith("mine") else -len(document)
        assert abs(ahead) <= longest
    parts = {part: iter(corpus.read(purpose)) for part, corpus in mixture.parts.items()}
    for document in documents:  # and each continues where it was
        assert document == next(parts["mine" if document.startswith("mine") else "docs"])


def test_parts_may_not_share_text_with_another_purpose():
    hub = HubCorpus(name="hub", path="a/b", calibration="train", distillation="x", evaluation="test")
    other = HubCorpus(name="other", path="a/b", calibration="x", distillation="y", evaluation="train[:10%]")
    mixed = MixtureCorpus(parts={"hub": hub, "docs": PydocCorpus()})
    with pytest.raises(ConfigError, match="calibration reads hub/train and evaluation other/train"):
        check_disjoint(Reader(mixed, "calibration"), Reader(other, "evaluation"))
    with pytest.raises(ConfigError, match="share text"):
        check_disjoint(Reader(other, "evaluation"), Reader(mixed, "calibration"))
    check_disjoint(Reader(mixed, "calibration"), Reader(hub, "evaluation"))


def test_what_cant_be_mixed_is_rejected():
    with pytest.raises(ConfigError, match=r"corpus\.parts\.NAME\.calibration=train"):
        MixtureCorpus(calibration="train")
    with pytest.raises(ConfigError, match=r"\+corpus@corpus\.parts\.NAME=CORPUS"):
        MixtureCorpus()
    with pytest.raises(ConfigError, match=r"corpus@corpus\.parts\.wikitext2=c4\."):
        compose_experiment(["corpus=mixture", "corpus.parts.wikitext2=c4"])


def test_a_part_that_is_null_is_left_out(mixture):
    alone = MixtureCorpus(parts={"mine": mixture.parts["mine"], "docs": None})
    assert alone.read("calibration") == mixture.parts["mine"].read("calibration")
    assert [split for _, split in alone.sources("calibration")] == [mixture.parts["mine"].calibration]
    words = ["corpus=mixture", "corpus.parts.wikitext2=null", "debug=tiny"]
    assert compose_experiment(words).calibration_reader.open().documents


def test_equal_parts_count_once_and_mixtures_are_taken_apart(mixture):
    docs, mine = mixture.parts["docs"], mixture.parts["mine"]
    expected = mixture.read("calibration")
    assert MixtureCorpus(parts={**mixture.parts, "again": PydocCorpus(name="other")}).read("calibration") == expected
    assert MixtureCorpus(parts={"both": mixture, "docs": docs, "mine": mine}).read("calibration") == expected


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ([90, 90, 90], 60, [20, 20, 20]),
        ([10, 90, 90], 60, [10, 25, 25]),
        ([90, 10, math.inf], 60, [25, 10, 25]),
        ([10, 20, 90], 100, [10, 20, 70]),
        ([10, 20, 30], 100, [10, 20, 30]),
    ],
)
def test_shares_of_parts_that_may_be_short(sizes, total, expected):
    assert shares(sizes, total) == expected


def test_a_short_part_is_spread_over_a_text_of_known_length():
    parts = [["a" * 10] * 6, ["b" * 10] * 60, ["c" * 10] * 60]
    text = "".join(document[0] for document in in_turn(parts, 600))
    assert (len(text), text.count("a"), text.count("b"), text.count("c")) == (60, 6, 27, 27)
    assert all(text[start : start + 12].count("a") for start in range(0, 60, 12))
    assert "".join(document[0] for document in in_turn(parts)) == "abc" * 6  # without one it ends where that part does
    assert len(in_turn(parts, 9999)) == 126


@pytest.mark.parametrize(("tokens", "length"), [(100, 18), (163, 18), (190, 21), (390, 43), (9999, 126)])
def test_a_mixture_reaches_as_far_as_is_read(tokens, length):
    tokenizer = byte_tokenizer()
    mixed = MixedDocuments([["a" * 10] * 6, ["b" * 10] * 60, ["c" * 10] * 60], ["own (a)", "b", "c"])
    documents = mixed.reaching(tokens, tokenizer)
    assert len(documents) == length
    assert (documents is mixed) == (length == 18)
    assert documents.count("a" * 10) == 6
    warned = mixed.shortages(tokens, tokenizer)
    assert [warning.partition(" of the mixture")[0] for warning in warned] == {
        390: ["own (a) has 14.0%"], 9999: ["own (a) has 4.8%"],
    }.get(tokens, [])  # fmt: skip


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["corpus=wikitext2"], ["pydoc", "own"]),
        (["corpus=text", "corpus.path=mine.txt"], ["pydoc", "own"]),
        (["corpus=pydoc"], ["pydoc"]),
        (["corpus=generated"], ["pydoc", "own"]),
        (["corpus=mixture"], ["pydoc", "own.wikitext2"]),
    ],
)
def test_broad_text_has_the_runs_own(words, parts):
    experiment = compose_experiment([*words, "corpus@calibration.corpus=broad"])
    assert list(experiment.calibration.corpus.leaves) == parts
    assert experiment.corpus.name in (words[0].partition("=")[2], "text")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["corpus=text"], "pydoc and text"),
        (["corpus=pydoc"], ""),
        (["corpus=text", "calibration.corpus.parts.own=null"], ""),
    ],
)
def test_what_was_mixed_for_calibration_is_noted(words, named):
    reader = compose_experiment(["corpus@calibration.corpus=broad", *words]).calibration_reader
    notes = reader.corpus.notes("calibration")
    assert [note.partition(" in equal")[0] for note in notes] == ([f"calibrated on {named}"] if named else [])
    assert reader.corpus.notes("evaluation") == []


def test_a_part_without_its_file_is_named_where_it_is():
    words = ["corpus@calibration.corpus=broad", "+corpus@calibration.corpus.parts.more=text"]
    with pytest.raises(ConfigError, match=r"add calibration\.corpus\.parts\.more\.path=FILE"):
        compose_experiment(words).calibration_reader.open()


def test_broad_text_is_for_one_purpose():
    with pytest.raises(ConfigError, match=r"takes what it is a part of.*corpus@calibration\.corpus=broad"):
        compose_experiment(["corpus=broad"])


@pytest.mark.slow
def test_a_run_reads_a_mixture(tmp_path):
    (tmp_path / "mine.txt").write_text("\n\n".join(f"{'mine ' * (1 + number % 9)}" for number in range(4000)))
    words = ["model=random", "debug=tiny", *MIXED, f"corpus.parts.mine.path={tmp_path}/mine.txt", "output_dir=O"]
    assert main(["run", *words]) == 0
    experiment = compose_experiment(words)
    assert experiment.calibration_reader.source == "mixture/calibration"
    assert list(experiment.corpus.parts) == ["pydoc", "mine"]
