"""The commands and examples of the documents are run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import lm_eval_task

from linearpatch.choices import CONF_DIR
from linearpatch.cli import main
from linearpatch.config import compose_experiment
from linearpatch.data.pydoc import PydocCorpus

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("experiments/**/README.md"))]
SMALL = ["debug=tiny", "tracker=none", "model=random", "num_pruned_layers=3"]


def code(document, language):
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.DOTALL)


def blocks_of(text, *languages):
    """Code blocks in order, each with its language."""
    return re.findall(rf"```({'|'.join(languages)})\n(.*?)```", text, flags=re.DOTALL)


def section(title):
    """The text of one section of the README."""
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return found


def commands():
    for document in DOCUMENTS:
        for block in code(document, "bash"):
            for line in block.splitlines():
                if (
                    line.startswith("linearpatch ") and "tracker=lines" not in line
                ):  # of the guide's own package, see below
                    yield pytest.param(shlex.split(line, comments=True)[1:], id=f"{document.parent.name}: {line[:60]}")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("arguments", [command for command in commands() if command.values[0][0] == "run"])
def test_every_run_is_planned(arguments, tmp_path, monkeypatch, session_cache):
    """`make test-slow` runs them."""
    execute(arguments, tmp_path, monkeypatch, session_cache, planned=["--dry-run"])


@pytest.mark.parametrize("verb", ["run", "list", "doctor", "cache", "status", "report"])
def test_one_command_of_each_verb_runs(verb, tmp_path, monkeypatch, session_cache):
    first = next(command.values[0] for command in commands() if command.values[0][0] == verb)
    execute(first, tmp_path, monkeypatch, session_cache)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", list(commands()))
def test_every_command_runs(arguments, tmp_path, monkeypatch, session_cache):
    execute(arguments, tmp_path, monkeypatch, session_cache)


def execute(arguments, tmp_path, monkeypatch, session_cache, planned=()):
    """Run a command, on a small model."""
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))
    monkeypatch.chdir(ROOT)  # documents name files from the top
    (tmp_path / "combinations.yaml").write_text("- {pruner: sleb}\n- {pruner: shortgpt, patch: 'none,diag'}\n")
    places = {"FOLDER": str(tmp_path), "=FILE": f"={tmp_path}/combinations.yaml"}
    for name, place in places.items():
        arguments = [word.replace(name, place) for word in arguments]
    sweeps = r"outputs/(compare|pruner_comparison|repair(_\w+)?)"
    arguments = [re.sub(sweeps, str(tmp_path), word) for word in arguments]
    command, *rest = arguments
    if "hydra/launcher=ray" in rest:
        pytest.importorskip("ray")
    composed_only = re.search(r"llama\d|experiment=(?!demo)", " ".join(rest))  # sweeps: see test_experiments.py
    if command == "run" and composed_only:
        overrides = [re.sub(r"^([\w.]+)=(\w+),.*", r"\1=\2", word) for word in rest if not word.startswith("-")]
        compose_experiment(overrides)
    elif command == "run":
        small = ["patch.ridge=0.01"] if any("patch=lstsq" in word for word in rest) else []
        small += ["distillation.num_blocks=4", "distillation.block_length=64"] if "distill" in " ".join(rest) else []
        assert main(["run", *rest, *SMALL, *small, f"output_dir={tmp_path}/D", *planned]) == 0
    elif command in ("list", "doctor", "cache"):
        assert main(arguments) == 0
    elif command in ("status", "report"):
        assert main(["run", *SMALL, f"output_dir={tmp_path}/D"]) == 0
        assert main(arguments) == 0
    else:
        assert command in ("bench", "generate")  # see test_benchmarks.py and the next test


@pytest.mark.embedded
@pytest.mark.slow
def test_the_section_use_the_result_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    """All of it in one folder, on the real model; lm_eval with a task that needs no hub."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "lines.yaml").write_text(lm_eval_task("lines", tmp_path / "lines.jsonl"))
    (tmp_path / "lines.jsonl").write_text('{"text": "The capital of France is Paris."}\n')
    run_by_others = ("hf ", "python llama.cpp", "vllm ")
    printed = []
    for language, block in blocks_of(section("Use the result"), "bash", "python"):
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
            continue
        for line in block.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            if command == "lm_eval":
                arguments = [word.replace("arc_easy", "lines") for word in arguments]
                command = str(Path(sys.executable).with_name("lm_eval"))
                done = subprocess.run([command, *arguments, "--include_path", "tasks"], check=True, capture_output=True)
                assert "byte_perplexity" in done.stdout.decode()
            elif command == "linearpatch":
                quick = ["debug=tiny", "tracker=none"] if arguments[0] == "run" else []
                capsys.readouterr()
                assert main([*arguments, *quick]) == 0
                printed += [capsys.readouterr().out] if arguments[0] == "generate" else []
            else:
                assert line.startswith(run_by_others)
    assert len(set(printed)) == 1  # the whole checkpoint and the adapter write the same text
    assert len(printed) == 2


def test_the_python_example_runs_with_a_model_in_memory(tmp_path, monkeypatch, capsys, session_cache):
    import linearpatch as lp

    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))
    monkeypatch.chdir(tmp_path)
    text = PydocCorpus().documents("calibration")
    Path("my.txt").write_text("\n\n".join(text)[:100_000])
    Path("other.txt").write_text("\n\n".join(text)[-5_000:])
    (_, loading), (_, story) = blocks_of(section("From Python"), "python")
    assert "lp.load_model(" in loading
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    model, tokenizer = lp.load_model("random", settings=sizes)
    exec(compile(story, "README.md", "exec"), {"model": model, "tokenizer": tokenizer})
    assert re.fullmatch(r"\(\d+(, \d+){6}\) \d+\.\d+\n", capsys.readouterr().out)
    assert lp.load("small").config.num_hidden_layers == model.config.num_hidden_layers - 7


GUIDE = ROOT / "docs" / "extending.md"


@pytest.fixture
def my_package(tmp_path, session_cache):
    """An environment in which the package of the extension guide is installed."""
    site, info = tmp_path / "site", tmp_path / "site" / "mine-1.0.dist-info"
    (site / "my_package").mkdir(parents=True)
    info.mkdir()
    for block in code(GUIDE, "python"):
        name, _, text = block.partition("\n")
        (site / "my_package" / name.removeprefix("# ")).write_text(text)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (toml,) = code(GUIDE, "toml")
    entries = "\n".join(line.replace('"', "") for line in toml.splitlines()[1:])
    (info / "entry_points.txt").write_text(f"[linearpatch.components]\n{entries}\n")
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "LINEARPATCH_CACHE": str(session_cache)}


def in_package(environment, program):
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_extension_guide_adds_works(my_package, tmp_path):
    """Pruner, operator, place and tracker, in a run that saves its model and in one that distills."""
    (yaml,) = code(GUIDE, "yaml")
    shutil.copytree(CONF_DIR, tmp_path / "conf")
    (tmp_path / "conf" / "pruner" / "stride.yaml").write_text(yaml)
    small = ["debug=tiny", "model=random", "num_pruned_layers=3", "pruner=stride", "tracker=lines"]
    training = ["distill=feature_mse", "distillation.num_blocks=4", "distillation.block_length=64"]
    in_package(
        my_package,
        f"""
import pathlib, torch, linearpatch, linearpatch.choices as choices
choices.CONF_DIR = pathlib.Path({str(tmp_path / "conf")!r})
from linearpatch.cli import main
small = {small!r}
assert main(["run", *small, "patch=shift", "save_model=true", "save_format=adapter", "output_dir=A"]) == 0
assert main(["run", *small, "patch=attention_shift", *{training!r}, "output_dir=B"]) == 0
model, _ = linearpatch.load_model("random")
small = linearpatch.apply(model, "A/model")
ids = torch.arange(3, 40)[None]
assert small.config.num_hidden_layers == model.config.num_hidden_layers - 3
assert not torch.allclose(small(ids).logits, model(ids).logits)
""",
    )
    first = json.loads(Path("A/result.json").read_text())
    assert first["pruning"]["removed_layers"] == [1, 4, 7]
    assert first["patch"]["method"] == "shift"
    second = json.loads(Path("B/result.json").read_text())
    assert second["metrics"]["patched"] != second["metrics"]["pruned"]
    assert second["distillation"]["num_trained"] == second["patch"]["num_parameters"] == 3 * 256
    tracked = [json.loads(line) for line in Path("runs.jsonl").read_text().splitlines()]
    assert [line["run"] for line in tracked] == [first["run_id"], second["run_id"]]
    assert tracked[1]["distilled/ppl/pydoc"] == second["metrics"]["distilled"]["ppl/pydoc"]["value"]
