"""Text that the model generates: reproducible, resumable, without padding, and a corpus like any other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

import linearpatch as lp
from linearpatch.cli import main
from linearpatch.config import compose_experiment
from linearpatch.data import generated, generating
from linearpatch.data.blocks import BlockSpec
from linearpatch.data.documents import Chat
from linearpatch.data.generated import GeneratedCorpus
from linearpatch.data.mixture import MixtureCorpus
from linearpatch.data.pydoc import PydocCorpus
from linearpatch.data.reader import Reader, check_disjoint
from linearpatch.errors import ConfigError, DataError, LinearPatchError, ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.random import byte_tokenizer
from linearpatch.storage.cache import Cache
from linearpatch.sweep.feasibility import Feasibility

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SMALL = GeneratedCorpus(number=5, length=20, batch_size=2)
OFTEN_ENDING = replace(
    SMALL, number=30, length=64, batch_size=30, temperature=50.0
)  # any token is as likely as the next


def loaded(*, template=None, **overrides):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return LoadedModel(decoder_of(tiny_model(**overrides)), tokenizer, "tiny")


def generate(corpus=SMALL, purpose="calibration", model=None, cache=None):
    return corpus.read(purpose).generate(model or loaded(), cache or Cache())


@pytest.mark.slow
def test_text_is_the_same_again_and_for_any_batch_size():
    expected = generate()
    assert generate() == expected
    for batch_size in (1, 3, "auto"):
        assert generate(replace(SMALL, batch_size=batch_size)) == expected
    for change in ({"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}):
        assert generate(replace(SMALL, **change)) != expected


def test_purposes_read_text_of_their_own():
    texts = [generate(purpose=purpose) for purpose in ("calibration", "distillation", "evaluation")]
    assert len(set().union(*texts)) == sum(map(len, texts))
    check_disjoint(Reader(SMALL, "calibration"), Reader(SMALL, "evaluation"))
    with pytest.raises(ConfigError, match="share text"):
        check_disjoint(Reader(SMALL, "calibration"), Reader(replace(SMALL, evaluation="calibration"), "evaluation"))


def test_sequences_are_full_and_hold_several_documents(monkeypatch):
    model, found = loaded(), []
    real = generated.sequences
    monkeypatch.setattr(generated, "sequences", lambda *args, **named: found.append(real(*args, **named)) or found[-1])
    documents = generate(OFTEN_ENDING, model=model)
    tokens = [message for (message,) in found[-1]]
    assert [len(each) for each in tokens] == [64] * 30
    start, end = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    ends = [(row, place) for row, each in enumerate(tokens) for place, token in enumerate(each[:-1]) if token == end]
    assert ends
    assert all(tokens[row][place + 1] == start for row, place in ends)  # the next document begins
    assert len(documents) == 30 + len(ends)
    assert not any(special in text for text in documents for special in model.tokenizer.all_special_tokens)


def test_documents_begin_with_the_token_that_is_named(monkeypatch):
    real, begun = generating.continuations, []

    def watched(decoder, prompts, *arguments, **settings):
        begun.append(prompts)
        return real(decoder, prompts, *arguments, **settings)

    monkeypatch.setattr(generating, "continuations", watched)
    documents = generate(replace(OFTEN_ENDING, start="<pad>"))
    assert begun == [[[0]] * 30]
    assert documents != generate(OFTEN_ENDING)


def test_an_interrupted_generation_resumes_with_the_same_result(tmp_path, monkeypatch):
    expected = generate()
    real, calls = generating.continuations, []

    def interrupted(*arguments, **settings):
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(generating, "continuations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(cache=Cache(tmp_path / "cache"))
    assert generate(cache=Cache(tmp_path / "cache")) == expected
    assert calls == [2, 2, 2, 1]  # the first batch isn't generated again
    assert generate(cache=Cache(tmp_path / "cache")) == expected
    assert calls == [2, 2, 2, 1]
    assert len(list((tmp_path / "cache" / "generated").glob("*.safetensors"))) == 1


def test_more_of_it_begins_with_what_is_there(tmp_path, monkeypatch):
    """Each sequence has random numbers of its own."""
    expected = generate(replace(SMALL, number=7))
    real, calls = generating.continuations, []

    def counted(*arguments, **settings):
        calls.append(len(arguments[1]))
        return real(*arguments, **settings)

    monkeypatch.setattr(generating, "continuations", counted)
    cache = Cache(tmp_path)
    assert generate(replace(SMALL, number=4), cache=cache) == expected[:4]
    assert generate(replace(SMALL, number=7), cache=cache) == expected
    assert calls == [2, 2, 2, 1]
    assert generate(replace(SMALL, number=5), cache=cache) == expected[:5]
    assert calls == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("number", "tokens", "expected"), [("auto", 1000, 11), ("auto", 1, 1), ("auto", None, 64), (3, 1000, 3)]
)
def test_auto_generates_as_much_as_is_read(number, tokens, expected):
    assert GeneratedCorpus(number=number, length=100).number_for(tokens) == expected


@pytest.mark.parametrize("parts", [{}, {"docs": PydocCorpus()}])
@pytest.mark.parametrize(("num_blocks", "held_out"), [(6, 0), (6, 3), (40, 6)])
def test_auto_is_enough_to_cut(parts, num_blocks, held_out):
    own = replace(SMALL, number="auto", length=64, batch_size=50)
    corpus = MixtureCorpus(parts={"own": own, **parts}) if parts else own
    model = loaded()
    spec = BlockSpec(num_blocks, 32)
    text = Reader(corpus, "calibration").open().generated(model, Cache(), spec, held_out or None)
    cut = text.cut_apart(spec, model.tokenizer, held_out) if held_out else text.cut_beside(spec, model.tokenizer)
    assert [len(blocks.ids) for blocks in cut] == [num_blocks, held_out or 1]


def test_batches_shrink_where_memory_runs_out(monkeypatch):
    expected = generate()
    real = generating.continuations

    def small_memory(decoder, prompts, *arguments, **settings):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(decoder, prompts, *arguments, **settings)

    monkeypatch.setattr(generating, "continuations", small_memory)
    assert generate(replace(SMALL, batch_size="auto")) == expected
    with pytest.raises(ModelError, match=r"Use corpus\.batch_size=auto"):
        generate(replace(SMALL, batch_size=4))


def test_another_model_writes_another_text(tmp_path):
    cache = Cache(tmp_path)
    first = generate(cache=cache)
    other = LoadedModel(decoder_of(tiny_model(num_hidden_layers=3)), byte_tokenizer(), "other")
    assert generate(model=other, cache=cache) != first


def test_the_model_holds_both_sides_of_a_conversation():
    chats = generate(replace(OFTEN_ENDING, conversations=True), model=loaded(template=TEMPLATE))
    assert chats
    assert all(isinstance(chat, Chat) for chat in chats)
    assert all([message["role"] for message in chat.messages] == ["user", "assistant"] for chat in chats)
    assert all(message["content"].strip() for chat in chats for message in chat.messages)
    assert len({len(chat) for chat in chats}) > 5  # messages that ended by themselves
    assert not any("</s>" in message["content"] for chat in chats for message in chat.messages)


def test_the_prompts_are_divided_among_the_purposes():
    prompts = ["one", "two", "three", "four", "five", "six", "one"]
    corpus = replace(SMALL, conversations=True, prompts=prompts, length=80, temperature=50.0)
    model = loaded(template=TEMPLATE)
    asked = [
        {chat.messages[0]["content"] for chat in generate(corpus, purpose, model)}
        for purpose in ("calibration", "distillation", "evaluation")
    ]
    assert asked == [{"one", "four"}, {"two", "five"}, {"three", "six"}]
    texts = [chat.messages[1]["content"] for chat in generate(corpus, "calibration", model)]
    assert len(set(texts)) == 5  # of the same prompt, each answer is another


def test_a_mixture_takes_turns_with_generated_text():
    mixture = MixtureCorpus(parts={"own": SMALL, "docs": PydocCorpus()})
    text = Reader(mixture, "calibration").open()
    assert text.is_deferred
    model, cache = loaded(), Cache()
    documents = text.generated(model, cache, BlockSpec(None, 64, "first")).documents
    own = generate(model=model)
    assert set(own) < set(documents)
    check_disjoint(Reader(mixture, "calibration"), Reader(SMALL, "evaluation"))
    with pytest.raises(ConfigError, match="share text"):
        check_disjoint(Reader(mixture, "calibration"), Reader(replace(SMALL, evaluation="calibration"), "evaluation"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"number": 0}, "corpus.number is 0"),
        ({"number": "many"}, r"corpus\.number is 'many'\. Allowed: auto, or a whole number"),
        ({"length": 1}, "corpus.length is 1"),
        ({"temperature": 0}, r"corpus.temperature is 0\. Allowed: at least 0.01"),
        ({"top_p": 1.5}, "from 0.01 to 1"),
        ({"batch_size": "many"}, "Allowed: auto, or a whole number"),
        ({"start": "<s>", "conversations": True}, r"corpus\.start is for free text"),
        ({"prompts": ["a"]}, r"Add corpus\.conversations=true"),
        ({"prompts": ["a", "b", "a"], "conversations": True}, "has 2 different ones"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        GeneratedCorpus(**settings)


def test_what_a_model_cannot_generate_says_what_to_do():
    with pytest.raises(DataError, match="no chat template"):
        generate(replace(SMALL, conversations=True))
    with pytest.raises(DataError, match=r"'<end>', which is no token .* </s>"):
        generate(replace(SMALL, start="<end>"))
    plain = loaded()
    plain.tokenizer.bos_token = plain.tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither a BOS nor an EOS"):
        generate(model=plain)
    with pytest.raises(DataError, match=r"has no split 'test'.*calibration"):
        SMALL.documents("test")
    with pytest.raises(DataError, match=r"Set corpus\.length to at least"):
        generate(replace(SMALL, conversations=True), model=loaded(template=TEMPLATE))
    with pytest.raises(DataError, match="leaves out what the user says"):
        generate(replace(SMALL, conversations=True, length=64), model=loaded(template="{{ 'hello' }}"))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("corpus.length=9000", "the model reads 4,096 tokens. Set length to at most 4096"),
        ("corpus.number=2 corpus.short_text=error", "has at most 128 tokens, and"),
    ],
)
def test_a_dry_run_knows_what_cannot_be_generated(words, error):
    small = ["model=random", "debug=tiny", "corpus=generated", "corpus.number=8", "corpus.length=64"]
    with pytest.raises(LinearPatchError, match=error):
        Feasibility().check(compose_experiment([*small, *words.split()]))


@pytest.mark.slow
def test_a_run_reads_generated_text_for_every_purpose(tmp_path):
    words = ["model=random", "model.settings.num_hidden_layers=4", "debug=tiny", "num_pruned_layers=1", "cache_dir=C",
             "patch=diag", "distill=output_kl", "corpus=generated", "corpus.number=6", "corpus.length=100",
             "eval=[ppl,divergence]", "stages=[distilled]", "tracker=none"]  # fmt: skip
    assert main(["run", *words, "output_dir=A"]) == 0
    record = json.loads(Path("A/result.json").read_text())
    assert record["calibration"]["corpus"] == "generated/calibration"
    assert {"ppl/generated", "divergence/generated/kl"} <= set(record["metrics"]["distilled"])
    assert len(list(Path("C/generated").glob("*.safetensors"))) == 3  # one for each purpose


def test_from_python(tmp_path):
    model, tokenizer = tiny_model(), byte_tokenizer()
    settings = {"number": 5, "length": 20, "cache_dir": tmp_path / "cache"}
    texts = lp.generate_texts(model, tokenizer, **settings)
    assert texts == generate()
    assert len(lp.tokens(texts, tokenizer, blocks=4, length=16).blocks.ids) == 4
    pruned = lp.prune(model, lp.tokens(texts, tokenizer, 4, 16, held_out=0), 2, pruner="tail").apply(model)
    metrics = lp.evaluate(pruned, tokenizer, "divergence", text=texts, dense=model)
    assert metrics["divergence/text/kl"].value > 0
    with pytest.raises(ConfigError, match=r"dense=MODEL"):
        lp.evaluate(pruned, tokenizer, "divergence", text=texts)
    tokenizer.chat_template = TEMPLATE
    settings["length"] = 64
    chats = lp.generate_texts(model, tokenizer, **settings, conversations=True, part="evaluation")
    assert [message["role"] for message in chats[0]] == ["user", "assistant"]
    with pytest.raises(ConfigError, match="no setting 'heat'"):
        lp.generate_texts(model, tokenizer, heat=2)
    with pytest.raises(ConfigError, match="reads 2,048 tokens"):
        lp.generate_texts(model, tokenizer, length=4096)


def test_generated_text_is_evaluated_beside_the_corpus():
    experiment = compose_experiment(["eval=[divergence,divergence_generated]", "debug=tiny"])
    (reader,) = experiment.evaluations["divergence_generated"].readers(experiment.evaluation_reader)
    assert (reader.corpus.number, reader.corpus.length) == (4, 128)
