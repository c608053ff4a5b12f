"""Values survive the way into Hydra: what is put into an override is what its parser, and OmegaConf, give back."""

import math
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from linearpatch.errors import ConfigError
from linearpatch.overrides import advice, expanded, override

PARSER = OverridesParser.create()
AWKWARD = (
    "", " ", " a ", "tëxt (v2).txt", "a=b", "x#1", "a,b", "null", "NULL", "true", "1e5", "007", "nan", "-inf", "[a]",
    "{a:1}", "${x}", "\\${x}", "$", "'", '"', "'\"", "it's", "\\", "a\\", "a\\'", "\\\\'", "a\nb", "\t", "~/x", "./a",
    "a/b", "C:\\x", "choice(1,2)", "range(3)", "a:b", "😀", "\u2028", "a b", "%", "@x", "*", "?", "|", "+1", "1_000",
)  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]))
tricky = st.text(st.sampled_from(list("ab01 .,:=()[]{}'\"\\$#~/\n\te-+@null")))
numbers = st.integers() | st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | numbers | texts | tricky | st.sampled_from(AWKWARD)
keys = st.from_regex(r"[a-z_][a-z0-9_-]{0,5}", fullmatch=True).filter(
    lambda key: key not in ("null", "true", "false", "nan", "inf")
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


def is_same(one, other):
    """Equal in type, too, at every level."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one == other


@given(values)
def test_parsing_gives_back_what_was_put_in(value):
    parsed = PARSER.parse_override(override("some.key", value))
    assert not parsed.is_sweep_override()
    assert is_same(parsed.value(), value)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_stay_texts(text):
    assert PARSER.parse_override(override("key", text)).value() == text
    assert PARSER.parse_override(override("key", [text, {"a": text}])).value() == [text, {"a": text}]


@given(texts | tricky | st.sampled_from(AWKWARD))
def test_a_literal_text_is_never_an_interpolation(text):
    parsed = PARSER.parse_override(override("key", text, literal=True)).value()
    assert OmegaConf.create({"key": parsed, "x": 1}).key == text


@given(st.lists(texts | tricky | st.sampled_from(AWKWARD), min_size=2, max_size=3))
def test_values_of_a_product_stay_apart(several):
    words = [override("key", text).removeprefix("key=") for text in several]
    parsed = PARSER.parse_override(f"key={','.join(words)}")
    found = [PARSER.parse_override(f"key={word}").value() for word in parsed.sweep_string_iterator()]
    assert found == several


@given(texts.filter(str.strip) | tricky.filter(str.strip))
def test_following_the_advice_gives_the_text(text):
    word = advice(f"corpus.path={text}").split(" in quotes: ", 1)[1]
    (argument,) = shlex.split(word)
    assert PARSER.parse_override(argument).value() == text


def test_numbers_that_are_not_finite():
    assert math.isnan(PARSER.parse_override(override("key", math.nan)).value())
    assert PARSER.parse_override(override("key", -math.inf)).value() == -math.inf


def test_what_an_override_cannot_say_is_rejected():
    cycle: list = []
    cycle.append(cycle)
    for value, message in (
        ({"a b": 1}, "holds the key 'a b'"),
        ({1: 1}, "holds the key 1"),
        (cycle, "levels"),
        ([[0] * 200] * 200, "10,000 values"),
        (b"bytes", "a bytes"),
    ):
        with pytest.raises(ConfigError, match=message):
            override("key", value)


@pytest.mark.parametrize(
    ("word", "full"),
    [
        ("model=./small", ["model=hub", "model.path=./small"]),
        ("model=org/name", ["model=hub", "model.path=org/name"]),
        ("model=/abs/small", ["model=hub", "model.path=/abs/small"]),
        ("model='my, models/a (1)'", ["model=hub", "model.path='my, models/a (1)'"]),
        ("model=..", ["model=hub", "model.path='..'"]),
        ("model=random", ["model=random"]),
        ("model=mine/small", ["model=mine/small"]),
        ("corpus.path=a/b", ["corpus.path=a/b"]),
    ],
)
def test_a_folder_or_hub_id_is_a_model(word, full, tmp_path):
    (tmp_path / "model" / "mine").mkdir(parents=True)
    (tmp_path / "model" / "mine" / "small.yaml").write_text("# a choice in a subfolder\n")
    assert expanded([word, "seed=1"], [str(tmp_path)]) == [*full, "seed=1"]
