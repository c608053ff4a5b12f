"""Text from checkpoints, as `linearpatch generate` gives it."""

import io
from contextlib import redirect_stdout

import pytest
import torch
from conftest import tiny_model

import linearpatch
from linearpatch.checkpoint.generation import Decoding, write_text
from linearpatch.cli import main
from linearpatch.models.decoder import decoder_of
from linearpatch.models.random import byte_tokenizer

FAST = ["debug=tiny", "model=random", "num_pruned_layers=3", "tracker=none"]
PROMPT = "Once upon a time"


@pytest.fixture(autouse=True, scope="module")
def _cache(session_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEARPATCH_CACHE", str(session_cache))
        yield


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The folder of a run with its model; tests only read it."""
    folder = tmp_path_factory.mktemp("generation")
    with redirect_stdout(io.StringIO()) as printed:
        assert main(["run", *FAST, "save_model=true", f"output_dir={folder}/D"]) == 0
    assert f"{folder}/D/model (custom)" in printed.getvalue()
    return folder / "D"


@pytest.fixture
def generated(capsys):
    def generate(*arguments) -> str:
        capsys.readouterr()
        assert main(["generate", *map(str, arguments), "--max-new-tokens", "12"]) == 0
        return capsys.readouterr().out

    return generate


def test_text_is_the_same_with_and_without_cache_and_from_both_folders(run_folder, generated):
    text = generated(run_folder, PROMPT)
    assert text
    assert generated(run_folder / "model", PROMPT) == text
    assert generated(run_folder, PROMPT, "--no-cache") == text
    assert generated(run_folder, PROMPT, "--device", "cpu", "--dtype", "float32") == text


def test_sampling_follows_the_seed(run_folder, generated):
    settings = (run_folder, PROMPT, "--temperature", "1.5", "--top-p", "0.95")
    assert generated(*settings, "--seed", "1") == generated(*settings, "--seed", "1")
    assert generated(*settings, "--seed", "1") != generated(*settings, "--seed", "2")


def test_beam_search_and_standard_input(run_folder, generated, monkeypatch):
    text = generated(run_folder, PROMPT, "--num-beams", "3")
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    assert generated(run_folder, "-", "--num-beams", "3") == text


@pytest.mark.slow
def test_an_adapter_generates_on_its_base(tmp_path, generated, capsys):
    assert main(["run", *FAST, f"output_dir={tmp_path}/D", "save_model=true"]) == 0
    text = generated(tmp_path / "D", PROMPT)
    assert main(["run", *FAST, f"output_dir={tmp_path}/D", "save_model=true", "save_format=adapter"]) == 0
    assert main(["generate", f"{tmp_path}/D", PROMPT]) == 1
    assert "--base random" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "D" / "model").glob("*.py"))
    assert generated(tmp_path / "D", PROMPT, "--base", "random") == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "x"], "nowhere is not a folder"),
        (["D", " "], "The prompt is empty"),
        (["D", "x", "--chat"], "needs a chat template"),
        (["D", "x", "--temperature", "-1"], "--temperature is -1.0"),
        (["D", "x", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["D", "x", "--top-p", "1.5"], "--top-p is 1.5"),
        (["D", "x", "--dtype", "int8"], "Allowed: auto"),
        (["D", "x", "--top-p", "0.9"], "Add --temperature=1"),
        (["D", "bad \udcff"], "isn't UTF-8 text"),
        (["D", "x", "--base", "random"], "is a whole model, not an adapter. Leave --base out"),
    ],
)
def test_bad_input_ends_with_a_sentence(run_folder, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(run_folder.parent)
    assert main(["generate", *arguments]) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert message in printed
    assert "Traceback" not in printed


def test_the_package_offers_what_the_readme_names():
    assert linearpatch.load
    assert linearpatch.apply
    assert linearpatch.load_tokenizer
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        linearpatch.unknown  # noqa: B018


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_model_writes_moves_no_cursor(monkeypatch, capsys, stream):
    """A model may write anything, control characters included."""
    model, tokenizer = tiny_model(), byte_tokenizer()
    escape = tokenizer("\x1b[2J")["input_ids"]

    def generate(input_ids, streamer, **_):
        if streamer is not None:
            streamer.put(input_ids)
            for token in escape:
                streamer.put(torch.tensor([token]))
            streamer.end()
        return torch.tensor([[*input_ids[0].tolist(), *escape]])

    monkeypatch.setattr(model, "generate", generate)
    write_text(model, tokenizer, "The sea", Decoding(), stream=stream)
    assert capsys.readouterr().out == ("\\x1b[2J\n" if stream else "")


def test_a_checkpoint_without_its_last_layers_is_a_decoder_again(tmp_path, generated):
    """Its patch sits before the final norm, and is a part of that."""
    words = ["pruner=tail", "pruner.protect_last=0", "patch=diag", "save_model=true", f"output_dir={tmp_path}/D"]
    assert main(["run", *FAST, *words]) == 0
    assert generated(tmp_path / "D", PROMPT)
    model, tokenizer = linearpatch.load(tmp_path / "D"), linearpatch.load_tokenizer(tmp_path / "D")
    decoder = decoder_of(model)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    logits = decoder.logits(decoder.hidden_states(decoder.forward(ids, use_cache=False)))
    torch.testing.assert_close(logits, model(ids).logits)
