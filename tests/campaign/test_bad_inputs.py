"""No wrong input is accepted, and none ends in a traceback.

A part of them is tried in every run of the tests; `make campaign` (LINEARPATCH_CAMPAIGN=all) tries them all.
"""

import os

import pytest
from bad_input import Bad, Good
from bad_inputs import everything
from transformers import AutoModelForCausalLM, LlamaConfig

from linearpatch.cli import main
from linearpatch.models.random import byte_tokenizer

EVERYTHING = everything()
ALL = os.environ.get("LINEARPATCH_CAMPAIGN") == "all"
EVERY = 1 if ALL else 17

# What is known not to be as it should yet, with the reason.
KNOWN: dict[str, str] = {}


@pytest.fixture(scope="session")
def good(tmp_path_factory, session_cache) -> Good:
    """A model in the hub's layout, and a run that saved its model."""
    folder = tmp_path_factory.mktemp("good")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=300, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEARPATCH_CACHE", str(session_cache))
        patch.chdir(folder)
        words = ["run", "debug=tiny", "model=hub", "model.path=./model", "num_pruned_layers=2", "tracker=none"]
        assert main([*words, "pruner=tail", "patch=none", "save_model=true", "output_dir=run"]) == 0
        words = ["generate", "run", "hello", "--max-new-tokens", "2"]
        assert main(words) == 0
    return Good(folder / "model", folder / "run")


@pytest.fixture(autouse=True)
def _no_last_resort(monkeypatch, session_cache):
    """An exception that nobody expected is told in a sentence, too; here it is none of the right answers."""

    def unexpected(error):
        raise error

    monkeypatch.setattr("linearpatch.cli.entry.unexpected", unexpected)
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))


def parameters() -> list[object]:
    known = {name: [pytest.mark.xfail(reason=reason, strict=True)] for name, reason in KNOWN.items()}
    return [pytest.param(bad, id=str(bad), marks=known.get(str(bad), [])) for bad in EVERYTHING[::EVERY]]


@pytest.mark.parametrize("bad", parameters())
def test_a_wrong_input_is_rejected_in_a_sentence(bad: Bad, good: Good, capfd, monkeypatch):
    bad.make(good)
    for name, value in bad.environment.items():
        monkeypatch.setenv(name, value)
    capfd.readouterr()
    try:
        code = main(list(bad.words))
    except SystemExit as error:  # argparse: how the command is called
        code = error.code
    printed = capfd.readouterr()
    assert code in (1, 2), f"accepted, with {code}: {printed.out[-300:]} {printed.err[-300:]}"
    assert "Traceback" not in printed.err + printed.out
    assert len((printed.err + printed.out).strip()) > 20, "rejected without a word"


def test_the_campaign_is_large_and_of_many_kinds():
    assert len(EVERYTHING) >= 300
    assert len({bad.kind for bad in EVERYTHING}) >= 12


def test_an_exception_that_nobody_expected_would_be_seen(monkeypatch):
    monkeypatch.setattr("linearpatch.cli.list.execute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["list"])
