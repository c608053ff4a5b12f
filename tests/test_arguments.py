"""Errors of the public functions name settings as the functions' arguments are named, not as the configuration does."""

from collections.abc import Callable
from typing import Any

import pytest
from conftest import tiny_model

import linearpatch as lp
from linearpatch.errors import ConfigError, DataError, LinearPatchError, named_as

TEXT = [f"Line {number} of a text about the number {number * number}." for number in range(400)]


@pytest.fixture(scope="module")
def use() -> Callable[[str], Any]:
    """Evaluate a call with a model, its tokenizer, and tokens of which none are held out."""
    model, tokenizer = lp.load_model("random")
    data = lp.tokens(TEXT, tokenizer, 8, 64, held_out=0)
    edit = lp.prune(model, data, 2, pruner="tail", protect_last=0)
    other = tiny_model(vocab_size=1024)
    names = {"other": other, "lp": lp, "model": model, "tokenizer": tokenizer, "data": data, "edit": edit, "TEXT": TEXT}
    return lambda call: eval(call, names)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("lp.prune(model, data, 40, pruner='tail')", r"^num_layers is 40, .*\(protect_first=0, protect_last=1,"),
        ("lp.prune(model, data, 2, pruner='explicit', layers=[1, 99])", r"^layers=\[1, 99\] .*, with num_layers=2\."),
        ("lp.prune(model, data, 2, patch='lstsq')", r"Set held_out of linearpatch\.tokens"),
        ("lp.prune(model, data, 2, pruner='nonsense')", r"^pruner=nonsense is not a choice"),
        ("lp.repair(model, edit, data, patch='lstsq', ridge=-1)", "^ridge is -1"),
        ("lp.distill(model, edit, data, learning_rate=-1)", "^learning_rate is -1"),
        ("lp.evaluate(model, tokenizer, 'divergence', TEXT, seq_len=1)", "^seq_len is 1"),
        ("lp.evaluate(model, tokenizer, 'generation', TEXT)", r"dense=MODEL\), or num_continuations=0\."),
        (
            "lp.evaluate(model, tokenizer, 'divergence', TEXT, dense=other)",
            "^dense has a vocabulary of 1,024",
        ),
        ("lp.perplexity(model, tokenizer, TEXT, length=1)", "^length is 1"),
        ("lp.perplexity(model, tokenizer, TEXT, blocks=0)", "^blocks is 0"),
        ("lp.generate_texts(model, tokenizer, temperature=0)", "^temperature is 0"),
        ("lp.tokens([3], tokenizer)", r"\(column=NAME\)"),
        ("lp.tokens(TEXT, tokenizer, bos='q')", "^bos is 'q'"),
    ],
)
def test_settings_are_named_as_arguments(use, call, message):
    with pytest.raises((ConfigError, DataError), match=message):
        use(call)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pruner.layers is 3", "layers is 3"),
        ("my_pruner.layers and a.pruner.layers stay", "my_pruner.layers and a.pruner.layers stay"),
        ("num_pruned is 2", "num_layers is 2"),
        ("num_pruned_layers stays, pruner=tail, too", "num_pruned_layers stays, pruner=tail, too"),
    ],
)
def test_whole_names_are_replaced(before, after):
    with pytest.raises(LinearPatchError) as caught, named_as({"num_pruned": "num_layers", "pruner.": ""}):
        raise LinearPatchError(before)
    assert str(caught.value) == after
