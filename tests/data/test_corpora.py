import json
import random
from contextlib import nullcontext

import pandas
import pytest
import torch
from conftest import tiny_model  # noqa: F401

from linearpatch.cli import main
from linearpatch.data.blocks import BlockSpec
from linearpatch.data.corpus import PURPOSES
from linearpatch.data.files import TextCorpus
from linearpatch.data.hub import HubCorpus
from linearpatch.data.pydoc import PydocCorpus
from linearpatch.data.reader import Reader, check_disjoint
from linearpatch.errors import ConfigError, DataError
from linearpatch.models.random import byte_tokenizer

TEXT = "".join(chr(97 + i % 26) for i in range(1000))


def cut(**settings):
    return BlockSpec(**settings).cut([TEXT[:400], TEXT[400:]], "", byte_tokenizer(), "alphabet")


def test_first_takes_disjoint_windows_in_order():
    blocks = cut(num_blocks=3, block_length=10)
    whole = torch.tensor(byte_tokenizer()(TEXT).input_ids)
    assert torch.equal(blocks.ids, whole[:30].view(3, 10))
    assert cut(block_length=10).ids.shape == (100, 10)


def test_windows_are_a_seeded_choice_of_disjoint_windows():
    blocks = cut(num_blocks=5, block_length=10, sampling="windows", seed=3)
    all_windows = cut(block_length=10).ids.tolist()
    assert all(block in all_windows for block in blocks.ids.tolist())
    assert torch.equal(blocks.ids, cut(num_blocks=5, block_length=10, sampling="windows", seed=3).ids)
    assert blocks.hash != cut(num_blocks=5, block_length=10, sampling="windows", seed=4).hash


def test_crops_may_overlap_and_outnumber_the_windows():
    blocks = cut(num_blocks=300, block_length=10, sampling="crops")
    assert blocks.ids.shape == (300, 10)


def test_document_crops_are_those_of_gptqs_protocol():
    generator = random.Random(7)
    documents = ["x" * generator.randint(1, 60) + TEXT[: generator.randint(1, 60)] for _ in range(50)]
    tokenizer = byte_tokenizer()
    spec = BlockSpec(num_blocks=20, block_length=30, sampling="document_crops", seed=0)

    random.seed(0)  # the protocol, step by step, on the interpreter's own generator
    expected = []
    for _ in range(20):
        while True:
            tokens = tokenizer(documents[random.randint(0, len(documents) - 1)]).input_ids
            if len(tokens) > 30:
                break
        start = random.randint(0, len(tokens) - 30 - 1)
        expected.append(tokens[start : start + 30])

    found = spec.cut(documents, "", tokenizer, "documents")
    assert found.ids.tolist() == expected
    with pytest.raises(DataError, match="no document of more than 30 tokens"):
        spec.cut(["short"], "", tokenizer, "documents")


def test_bos_policies():
    tokenizer = byte_tokenizer()
    each = cut(num_blocks=3, block_length=10, bos="each").ids
    assert (each[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(each[:, 1:], cut(num_blocks=3, block_length=9, bos="none").ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_blocks": 101, "block_length": 10}, "1,000 tokens: 100 blocks of 10, 101 needed"),
        ({"block_length": 2000}, "0 blocks of 2000, 1 needed. Ask for shorter blocks"),
        ({"num_blocks": 5, "block_length": 2000, "sampling": "crops"}, "0 blocks of 2000, 5 needed. Ask for shorter"),
        ({"sampling": "crops"}, r"needs calibration\.num_blocks"),
    ],
)
def test_a_corpus_too_short_says_how_many_blocks_it_can_give(settings, message):
    with pytest.raises(DataError, match=message):
        cut(**settings)


@pytest.mark.parametrize("settings", [{"sampling": "all"}, {"bos": "yes"}, {"block_length": 1}, {"num_blocks": 0}])
def test_impossible_cuts_are_rejected(settings):
    with pytest.raises(ConfigError, match="Allowed"):
        BlockSpec(**settings)


def test_the_hash_depends_on_tokens_and_shape_alone():
    assert cut(num_blocks=2, block_length=10).hash == cut(num_blocks=2, block_length=10).hash
    assert cut(num_blocks=2, block_length=10).hash != cut(num_blocks=1, block_length=20).hash


def test_pydoc_splits_share_no_topic_and_miss_none():
    from pydoc_data.topics import topics

    parts = [PydocCorpus().documents(split) for split in PURPOSES]
    assert sorted(document for part in parts for document in part) == sorted(topics.values())
    assert all(len(part) >= 10 for part in parts)
    assert PydocCorpus(seed=1).documents("evaluation") != PydocCorpus().documents("evaluation")


def test_pydoc_rejects_an_unknown_split():
    with pytest.raises(DataError, match="Allowed: calibration, distillation, evaluation"):
        PydocCorpus(calibration="train").read("calibration")


@pytest.mark.parametrize(("suffix", "lines"), [("jsonl", True), ("json", False)])
def test_text_files_of_rows(tmp_path, suffix, lines):
    file = tmp_path / f"mine.{suffix}"
    pandas.DataFrame({"text": [f"document {i}" for i in range(10)]}).to_json(file, orient="records", lines=lines)
    corpus = TextCorpus(path=str(file))
    assert corpus.documents("all[:30%]") == ["document 0", "document 1", "document 2"]
    parts = [corpus.documents(corpus.split(purpose)) for purpose in PURPOSES]
    assert [d for part in parts for d in part] == [f"document {i}" for i in range(10)]


def test_text_files_of_paragraphs_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n\nthree")
    pandas.DataFrame({"text": ["four"]}).to_parquet(tmp_path / "b.parquet")
    assert TextCorpus(path=str(tmp_path)).documents("all") == ["one", "two", "\nthree", "four"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "doesn't exist"),
        ("empty.txt", "", "holds no text"),
        ("columns.jsonl", json.dumps({"body": "x"}), "no column 'text'. Its columns: body"),
        ("broken.jsonl", "{", "can't be read as jsonl"),
        ("table.xls", "a,b", "unknown ending"),
        ("latin.txt", b"\xff\xfe\xfa", "UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        TextCorpus(path=str(tmp_path / name)).read("calibration")


def test_a_text_corpus_needs_a_path():
    with pytest.raises(ConfigError, match=r"add corpus\.path=FILE"):
        TextCorpus().read("calibration")


def test_local_data_sets_are_read_in_place_of_the_hub(tmp_path):
    folder = tmp_path / "wikitext" / "wikitext-2-v1"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("\n".join(json.dumps({"text": f"line {i}"}) for i in range(10)))
    corpus = HubCorpus(name="w", path="Salesforce/wikitext", config="wikitext-2-v1")
    assert corpus.documents("test[50%:]", tmp_path) == [f"line {i}" for i in range(5, 10)]


def test_without_hub_and_local_data_the_error_says_what_to_do(tmp_path):
    corpus = HubCorpus(name="w", path="Salesforce/nonexistent", config="x")
    with pytest.raises(
        DataError, match=r"set datasets_dir=FOLDER .* a folder with nonexistent/x/test\.jsonl, or choose"
    ):
        corpus.documents("test")
    with pytest.raises(DataError, match=rf"{tmp_path}/nonexistent/x/test\.jsonl, doesn't exist\. Put it there"):
        corpus.documents("test", tmp_path)
    (tmp_path / "nonexistent" / "y").mkdir(parents=True)
    with pytest.raises(DataError, match=rf"doesn't exist; {tmp_path}/nonexistent holds y\. Put it there"):
        corpus.documents("test", tmp_path)


def test_text_that_cant_be_had_is_missed_before_a_model_is_loaded(tmp_path, capsys):
    words = ["debug=tiny", "model=random", "tracker=none", "corpus@calibration.corpus=wikitext2"]
    assert main(["run", *words, f"output_dir={tmp_path}/D"]) == 1
    said = capsys.readouterr()
    assert "corpus wikitext2: can't load" in " ".join((said.out + said.err).split())
    assert set(json.loads((tmp_path / "D" / "result.json").read_text())["timings_s"]) == {"read"}


@pytest.mark.parametrize(
    ("first", "second"),
    [("calibration", "distillation"), ("calibration", "evaluation"), ("distillation", "evaluation")],
)
def test_one_corpus_may_not_serve_two_purposes_with_one_text(first, second):
    corpus = HubCorpus(**{"name": "w", "path": "a/b", first: "train", second: "train[50%:]"})
    with pytest.raises(ConfigError, match="share text"):
        check_disjoint(Reader(corpus, first), Reader(corpus, second))
    apart = HubCorpus(**{"name": "w", "path": "a/b", first: "train[:50%]", second: "train[50%:]"})
    check_disjoint(Reader(apart, first), Reader(apart, second))


WHOLE = ("corpus@calibration.corpus=text", "calibration.corpus.path=a.txt", "calibration.corpus.calibration=all")


@pytest.mark.parametrize(
    ("words", "shares"),
    [
        (WHOLE, False),  # its splits for distillation and evaluation are read by nobody
        ((*WHOLE, "distill=output_kl"), False),  # which reads the run's corpus
        ((*WHOLE, "distill=output_kl", "corpus=text", "corpus.path=a.txt"), True),
        ((*WHOLE, "corpus@evaluation.corpus=text", "evaluation.corpus.path=a.txt"), True),
        ((*WHOLE, "corpus@evaluation.corpus=text", "evaluation.corpus.path=a.txt", "eval=[smoke]"), False),
        ((*WHOLE, "corpus@evaluation.corpus=text", "evaluation.corpus.path=b.txt"), False),
        (("corpus=text", "corpus.path=a.txt", "corpus.calibration=all"), True),
        (("corpus=text", "corpus.path=a.txt", "corpus.calibration='all[:60%]'", "distill=output_kl"), True),
        (("corpus=text", "corpus.path=a.txt", "corpus.calibration='all[:60%]'"), False),
        (("corpus=text", "corpus.path=a.txt", "corpus.calibration=all", "eval=[smoke]"), False),
    ],
)
def test_splits_that_nobody_reads_may_share_text_with_others(words, shares):
    from linearpatch.config import compose_experiment

    with pytest.raises(ConfigError, match="share text") if shares else nullcontext():
        compose_experiment(list(words))


def test_two_corpora_may_not_share_text_either():
    one = HubCorpus(name="one", path="a/b", calibration="train", distillation="x", evaluation="test")
    other = HubCorpus(name="other", path="a/b", calibration="x", distillation="y", evaluation="train[:10%]")
    with pytest.raises(ConfigError, match="one/train and evaluation other/train"):
        check_disjoint(Reader(one, "calibration"), Reader(other, "evaluation"))
    check_disjoint(Reader(other, "calibration"), Reader(one, "evaluation"))


@pytest.mark.parametrize("split", ["train[", "train[10:20]x", "a b", "train[50%:20%]"])
def test_splits_that_mean_nothing_are_rejected(split):
    with pytest.raises(ConfigError, match="split"):
        HubCorpus(name="w", path="a/b", calibration=split)


@pytest.mark.data
def test_wikitext_from_local_data(datasets_dir):
    from linearpatch.config import compose_experiment

    experiment = compose_experiment(["corpus=wikitext2_v1", f"datasets_dir={datasets_dir}"])
    text = experiment.evaluation_reader.open().documents
    assert any("Robert <unk> is an English film" in document for document in text)
