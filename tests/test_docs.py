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
from configuration_page import INTRODUCTION
from conftest import lm_eval_task
from covering import covering
from transformers import AutoTokenizer

from linearpatch.choices import CONF_DIR
from linearpatch.cli import main
from linearpatch.config import compose_experiment
from linearpatch.data.pydoc import PydocCorpus
from linearpatch.models.embedded import EmbeddedModel
from linearpatch.registry import name_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("experiments/**/README.md"))]
SMALL = ["debug=tiny", "tracker=none", "model=random", "num_pruned_layers=3"]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
OWN_MODEL = "Prune your own model, with your own text"  # a section of the README
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def code(document, language):
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.DOTALL)


def blocks_of(text, *languages):
    """Code blocks in order, each with its language."""
    return re.findall(rf"```({'|'.join(languages)})\n(.*?)```", text, flags=re.DOTALL)


def section(title, document=ROOT / "README.md"):
    """The text of one section of a document."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", document.read_text(), re.DOTALL | re.MULTILINE)
    return text


def commands():
    """Each command of the documents, once however many show it."""
    blocks = [(document.parent.name, block) for document in DOCUMENTS for block in code(document, "bash")]
    blocks += [("configuration", block) for _, block in blocks_of(INTRODUCTION, "bash")]
    lines = {}
    for folder, block in blocks:
        for line in block.splitlines():
            line = re.sub(r"^(accelerate launch|torchrun) .*-m linearpatch\.cli ", "linearpatch ", line)
            if line.startswith("linearpatch ") and "tracker=lines" not in line:  # of the guide's own package, see below
                arguments = shlex.split(line, comments=True)[1:]
                lines.setdefault(tuple(arguments), pytest.param(arguments, id=f"{folder}: {line[:60]}"))
    return lines.values()


def planned_runs():
    """As few commands as show all that any of them sets."""
    runs = [command.values[0] for command in commands() if command.values[0][0] == "run"]
    return covering(sorted(runs, key=len, reverse=True))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("arguments", planned_runs(), ids=" ".join)
def test_every_setting_of_a_run_is_planned(arguments, tmp_path, monkeypatch, session_cache):
    """`make test-slow` runs all of the commands."""
    execute(arguments, tmp_path, monkeypatch, session_cache, planned=["--dry-run"])


@pytest.mark.parametrize("verb", ["run", "list", "doctor", "cache", "status", "report"])
def test_one_command_of_each_verb_runs(verb, tmp_path, monkeypatch, session_cache):
    first = next(command.values[0] for command in commands() if command.values[0][0] == verb)
    execute(first, tmp_path, monkeypatch, session_cache)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", list(commands()))
def test_every_command_runs(arguments, tmp_path, monkeypatch, session_cache):
    execute(arguments, tmp_path, monkeypatch, session_cache)


def trainings():
    """Each command of the documents and of the YAML files that trains on the embedded text."""
    shown = [command.values[0] for command in commands() if command.values[0][0] == "run"]
    headers = [path.read_text().splitlines()[1] for path in sorted((CONF_DIR / "distill").glob("*.yaml"))]
    shown += [shlex.split(line.removeprefix("#"))[1:] for line in headers if line.startswith("#   linearpatch run")]
    for _, *words in shown:
        overrides = [re.sub(r"^([\w.@]+)=(\w+),.*", r"\1=\2", word) for word in words if not word.startswith("-")]
        if not any(word.startswith("distill=") for word in overrides) or any("FOLDER" in word for word in overrides):
            continue
        experiment = compose_experiment(overrides)
        if experiment.training and name_of(experiment.distillation_reader.corpus) == "pydoc":
            yield pytest.param(experiment, id=" ".join(words))


@pytest.mark.embedded
@pytest.mark.parametrize("experiment", list(trainings()))
def test_there_is_text_enough_for_every_training(experiment, session_cache):
    """With the lengths that it shows; the other tests shorten them."""
    tokenizer = AutoTokenizer.from_pretrained(EmbeddedModel().checkpoint(session_cache))
    settings = experiment.distillation
    text = experiment.distillation_reader.open()
    blocks, validation = text.cut_apart(settings.blocks(experiment.seed), tokenizer, settings.validation_blocks)
    assert len(blocks.ids)
    assert len(validation.ids) == settings.validation_blocks


def execute(arguments, tmp_path, monkeypatch, session_cache, planned=()):
    """Run a command, on a small model."""
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))
    monkeypatch.chdir(ROOT)  # documents name files from the top
    (tmp_path / "combinations.yaml").write_text("- {pruner: sleb}\n- {pruner: shortgpt, patch: 'none,diag'}\n")
    places = {"FOLDER": str(tmp_path), "=FILE": f"={tmp_path}/combinations.yaml"}
    for name, place in places.items():
        arguments = [word.replace(name, place) for word in arguments]
    command, *rest = arguments
    if command in ("status", "report"):  # of runs that the command before it left
        rest = [re.sub(r"^outputs/\w+", f"{tmp_path}/D", word) for word in rest]
        arguments = [command, *rest]
    rest = [re.sub(r"^num_pruned=\d+,.*", "num_pruned=2,3", word) for word in rest]
    if "hydra/launcher=ray" in rest:
        pytest.importorskip("ray")
    # Sweeps: see test_experiments.py. Trackers' settings: see tests/tracking; nothing is uploaded from here.
    rest = [word for word in rest if word != "model=./my-model"]
    not_here = r"llama\d|corpus=wikitext|experiment=(?!demo)|tracker\.|pruner\.layers=|distill\.sharded"
    if command == "run" and re.search(not_here, " ".join(rest)):
        overrides = [re.sub(r"^([\w.]+)=(\w+),.*", r"\1=\2", word) for word in rest if not word.startswith("-")]
        compose_experiment(overrides)
    elif command == "run":
        small = ["patch.ridge=0.01"] if any("patch=lstsq" in word for word in rest) else []
        small += ["distillation.num_blocks=4", "distillation.block_length=64"] if "distill" in " ".join(rest) else []
        small += ["hydra.sweeper.n_trials=2"] if "hydra/sweeper=optuna" in rest else []
        assert main(["run", *rest, *SMALL, *small, f"output_dir={tmp_path}/D", *planned]) == 0
    elif command == "frontier":
        overrides = [re.sub(r"^([\w.]+)=(\w+),.*", r"\1=\2", word) for word in rest if re.match(r"\w+=", word)]
        compose_experiment(overrides)  # see tests/frontiers
    elif command in ("list", "doctor", "cache"):
        assert main(arguments) == 0
    elif command in ("status", "report"):
        assert main(["run", *SMALL, f"output_dir={tmp_path}/D"]) == 0
        assert main(arguments) == 0
    else:
        assert command in ("bench", "generate")  # see test_benchmarks.py and the next test


@pytest.mark.embedded
@pytest.mark.slow
def test_saving_and_serving_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    """All of it in one folder, on the real model; lm_eval with a task that needs no hub."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "lines.yaml").write_text(lm_eval_task("lines", tmp_path / "lines.jsonl"))
    (tmp_path / "lines.jsonl").write_text('{"text": "The capital of France is Paris."}\n')
    run_by_others = ("hf ", "llama-", "mlx_lm.", "vllm ", "node ", "(cd tests/llama_cpp")
    printed = []
    for language, block in blocks_of((ROOT / "docs" / "saving.md").read_text(), "bash", "python"):
        if language == "python":
            exec(compile(block, "saving.md", "exec"), {})
            continue
        for line in block.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            if command == "lm_eval":
                arguments = [word.replace("arc_easy", "lines") for word in arguments]
                command = str(Path(sys.executable).with_name("lm_eval"))
                done = subprocess.run([command, *arguments, "--include_path", "tasks"], check=True, capture_output=True)
                assert "byte_perplexity" in done.stdout.decode()
            elif "experiment=serving" in arguments:
                compose_experiment([word for word in arguments if "=" in word])  # it reads WikiText-2
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
    ((_, story),) = blocks_of(section(OWN_MODEL), "python")
    model, tokenizer = lp.load_model("random", settings=SIZES)
    monkeypatch.setattr(lp, "load_model", {"smollm2_135m": (model, tokenizer)}.__getitem__, raising=False)
    exec(compile(story, "README.md", "exec"), {})
    assert re.fullmatch(r"\(\d+(, \d+){6}\) \d+\.\d+\n", capsys.readouterr().out)
    assert lp.load("small").config.num_hidden_layers == model.config.num_hidden_layers - 7


def test_a_model_and_text_of_ones_own(tmp_path, monkeypatch, session_cache):
    """The README's commands and the quickstart's Python, on a model that was saved as anybody's is."""
    import linearpatch as lp

    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    for part in lp.load_model("random", settings=SIZES):
        part.save_pretrained("my-model")
    Path("my.txt").write_text("\n\n".join(PydocCorpus().documents("calibration"))[:100_000])
    lines = [line for _, block in blocks_of(section(OWN_MODEL), "bash") for line in block.splitlines()]
    run, generate = (shlex.split(line)[1:] for line in lines)
    assert main([*run, "debug=tiny", "tracker=none", "num_pruned_layers=3", "calibration.held_out_blocks=2"]) == 0
    assert main([*generate, "--max-new-tokens", "3"]) == 0
    quickstart = ROOT / "docs" / "quickstart.md"
    assert run in [shlex.split(line)[1:] for block in code(quickstart, "bash") for line in block.splitlines()]
    block, *story = code(quickstart, "python")
    assert story == [block for _, block in blocks_of(section(OWN_MODEL), "python")]  # which another test runs
    namespace = {}
    exec(compile(block, "quickstart.md", "exec"), namespace)
    assert namespace["model"].config.num_hidden_layers == 9


def cells():
    notebook = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs_on_a_random_model(tmp_path, monkeypatch, capsys, session_cache):
    import linearpatch as lp

    load = lp.load_model
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))
    monkeypatch.setattr(lp, "load_model", lambda name: load("random", settings=SIZES), raising=False)
    run_notebook(capsys)


@pytest.mark.embedded
@pytest.mark.slow
def test_the_notebook_runs(capsys):
    perplexity = run_notebook(capsys)
    assert perplexity["dense"] < perplexity["patched"] < perplexity["pruned"]


def run_notebook(capsys):
    """Run all cells, as a notebook does; the perplexities that they find."""
    assert json.loads(NOTEBOOK.read_text())["nbformat"] == 4
    namespace = {}
    for number, cell in enumerate(cells()):
        exec(compile(cell, f"{NOTEBOOK.name}, cell {number}", "exec"), namespace)
    assert Path("small/pruning.json").exists()
    assert "The capital of France is" in capsys.readouterr().out
    return namespace["values"]


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


@pytest.mark.slow
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
