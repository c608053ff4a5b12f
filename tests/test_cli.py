"""The command line itself: what it says at once, what it says when something breaks, what the shell completes."""

import io
import os
import subprocess
import sys

import argcomplete
import pytest
from small_runs import run

from benchmarks import BENCHMARKS, LARGE
from benchmarks.startup import LIMIT_S, QUICK, cpu_seconds
from linearpatch.choices import CONF_DIR, choices
from linearpatch.cli import main
from linearpatch.cli.parser import command_parser, package_version
from linearpatch.registry import GROUPS, components, declared


@pytest.fixture(autouse=True)
def _cache(session_cache, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))


@pytest.mark.parametrize("words", QUICK.values(), ids=QUICK)
def test_what_needs_no_model_comes_at_once(words):
    assert cpu_seconds(words) < LIMIT_S


@pytest.mark.parametrize("words", QUICK.values(), ids=QUICK)
def test_what_needs_no_model_imports_no_heavy_package(words):
    code = f"import sys; from linearpatch.cli import main\ntry: main({words!r})\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'transformers', 'lm_eval', 'wandb', 'hydra') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("group", GROUPS)
def test_components_are_known_without_importing_them(group):
    described = {name: (cls.__doc__ or "").strip().split("\n")[0] for name, cls in components(group).items()}
    assert dict(declared(group)) == described


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pruner=slebb", "pruner=slebb is not a choice. Did you mean 'sleb'?"),
        ("eval=[ppl,smoek]", "Did you mean 'smoke'?"),
        ("corpus@calibration.corpus=wikitxt2", "Did you mean 'wikitext2'?"),
        ("experiment=demmo", "Did you mean 'demo'?"),
        ("pruner=slebb,shortgtp", "pruner=slebb is not a choice"),
    ],
)
def test_a_misspelt_choice_is_told_before_composing(word, message, said, monkeypatch):
    monkeypatch.setattr("linearpatch.config.register_schemas", lambda: pytest.fail("composes"))
    assert main(["run", word]) == 1
    assert message in said()


def test_choices_of_the_users_own_folder_are_known(tmp_path, said):
    (tmp_path / "conf" / "pruner").mkdir(parents=True)
    (tmp_path / "conf" / "pruner" / "mine.yaml").write_text("defaults: [explicit_schema, _self_]\nlayers: [1, 4, 7]\n")
    assert run("pruner=mine", "--config-dir", str(tmp_path / "conf"), "--dry-run") == 0
    assert run("pruner=mein", "--config-dir", str(tmp_path / "conf"), "--dry-run") == 1


def test_version_and_help(capsys):
    for words, expected in (
        (["--version"], f"linearpatch {package_version()}"),
        (["bench", "--help"], [*BENCHMARKS, *LARGE]),
        (["--help"], "register-python-argcomplete"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in ([expected] if isinstance(expected, str) else expected))
    assert main(["run", "--help"]) == 0
    assert "--dry-run" in capsys.readouterr().out


def test_cfg_job_shows_the_chosen_names(capsys):
    assert main(["run", "--cfg", "job", "pruner=sleb", "eval=[ppl,smoke]", "corpus@calibration.corpus=c4"]) == 0
    shown = capsys.readouterr().out
    assert "choices:\n" in shown
    for line in ("  pruner: sleb\n", "  patch: rotate\n", "  corpus@calibration.corpus: c4\n", "  - smoke\n"):
        assert line in shown.partition("model:\n")[0]
    assert "num_pruned_layers: 5\n" in shown
    assert main(["run", "pruner=sleb", "--cfg", "job", "--package", "pruner"]) == 0  # flags after overrides, too
    assert "choices" not in capsys.readouterr().out


def test_an_unexpected_error_is_one_sentence_with_the_path_of_its_traceback(monkeypatch, said, tmp_path):
    def broken(_):
        raise RuntimeError("two\nlines.")

    monkeypatch.setattr("linearpatch.cli.list.execute", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["list"]) == 1
    (log,) = tmp_path.glob("linearpatch-*.log")
    message = said()
    assert f"Unexpected error, RuntimeError: two lines. The traceback is in {log}." in message
    assert "Traceback (" not in message
    assert "Traceback (most recent call last)" in log.read_text()


def test_an_unexpected_error_of_a_run_is_in_its_log(monkeypatch, said, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("of a library")

    monkeypatch.setattr("linearpatch.pipeline.prepare", broken)
    assert run(f"output_dir={tmp_path}/D") == 1
    message = said()
    assert f"Unexpected error, RuntimeError: of a library. The traceback is in {tmp_path}/D/run.log." in message
    assert "Traceback (" not in message
    assert "Error executing job" not in message
    assert "Traceback (most recent call last)" in (tmp_path / "D" / "run.log").read_text()


def test_our_errors_are_preceded_by_nothing(capfd, tmp_path):
    assert run("num_pruned_layers=50", f"output_dir={tmp_path}/D") == 1
    shown = capfd.readouterr()
    assert "Error executing job" not in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err


def completions(line, monkeypatch):
    """What the shell would offer at the end of a line."""
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("_ARGCOMPLETE_IFS", "\n")
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    monkeypatch.setenv("_ARGCOMPLETE_COMP_WORDBREAKS", " \t\n\"'><=;|&(:")
    # It would open, and so close, descriptor 9, which is pytest's or one of its workers'.
    monkeypatch.setattr(argcomplete.CompletionFinder, "_init_debug_stream", lambda _: None)
    output = io.StringIO()
    with pytest.raises(SystemExit):
        argcomplete.autocomplete(
            command_parser(), always_complete_options=False, output_stream=output, exit_method=sys.exit
        )
    return {word.strip() for word in output.getvalue().split("\n") if word.strip()}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("linearpatch st", {"status"}),
        ("linearpatch run prun", {"pruner="}),
        ("linearpatch run pruner=sl", {"sleb"}),  # bash breaks words at =
        ("linearpatch run -m pruner=sleb,shor", {"sleb,shortgpt", "sleb,shortx"}),
        ("linearpatch run force=", {"true", "false"}),
        ("linearpatch bench star", {"startup"}),
        ("linearpatch list tra", {"tracker"}),
    ],
)
def test_the_shell_completes_commands_choices_and_settings(line, offered, monkeypatch):
    assert completions(line, monkeypatch) == offered


def test_a_sweep_reads_choices_from_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "conf, x (1)"
    (folder / "pruner").mkdir(parents=True)
    (folder / "pruner" / "mine.yaml").write_text("defaults: [explicit_schema, _self_]\nlayers: [1, 4]\n")
    words = ("--config-dir", str(folder), "pruner=mine", "patch=none", f"output_dir={tmp_path}/D")
    assert run("-m", *words, "num_pruned_layers=2", "seed=0,1", "--dry-run") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "sweep="], "sweep= names no file"),
        (["sweep="], "Add -m"),
        (["output_dir="], "output_dir is empty"),
        (["output_dir=o/${pruner}"], "For its name write ${hydra:runtime.choices.pruner}"),
        (["-m", "output_dir=o/${pruner}", "seed=0,1"], "For its name write ${hydra:runtime.choices.pruner}"),
        (["corpus=text", "corpus.path=tëxt (v2).txt"], """in quotes: 'corpus.path="tëxt (v2).txt"'"""),
        (["corpus=text", "corpus.path=a,b.txt"], """in quotes: 'corpus.path="a,b.txt"'"""),
    ],
)
def test_what_cannot_be_meant_has_a_sentence_and_makes_no_folder(words, message, said, tmp_path):
    assert run(*words) == 1
    assert message in said()
    assert not (tmp_path / "o").exists()


def test_a_folder_named_as_a_model_is_loaded(said):
    assert main(["run", "model=./nowhere", "debug=tiny", "tracker=none", "num_pruned_layers=3"]) == 1
    message = said()
    assert "nowhere" in message
    assert "is not a choice" not in message


def test_a_folder_without_its_path_is_told_how_to_write_it(said, tmp_path, monkeypatch):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["run", "model=my-model"]) == 1
    assert "write model=./my-model" in said()


def test_an_unknown_key_names_no_choice_that_the_user_doesnt_have(said):
    assert main(["run", "calibration.seed=1"]) == 1
    message = said()
    assert "'calibration.seed' doesn't exist. Allowed: batch_size" in message


def test_hydras_own_completion_names_ours(said):
    assert main(["run", "-sc", "install=bash"]) == 1
    assert "register-python-argcomplete linearpatch" in said()


def test_every_choice_is_listed(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    names = {file.stem for file in (CONF_DIR / "patch").glob("*.yaml")} | set(choices("pruner"))
    assert all(name in shown for name in names)
    assert os.environ.get("_ARGCOMPLETE") is None
