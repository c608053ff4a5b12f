"""Every experiment's sweep is planned, and every published figure is the figure of one of its runs."""

import re
from collections.abc import Sequence

import pytest
from covering import covering
from hydra.core.override_parser.overrides_parser import OverridesParser
from published import COLUMNS, EXPERIMENTS, FILES, LAYERS, lines, name, rows

from linearpatch.choices import CONF_DIR, choices
from linearpatch.cli import main
from linearpatch.cli.jobs import Jobs
from linearpatch.config import compose_config, compose_experiment, resolved, to_experiment
from linearpatch.data.pydoc import SHARES

NAMES = sorted(file.stem for file in (CONF_DIR / "experiment").glob("*.yaml"))
# Presets, and the page that explains each.
PRESETS = {
    "recommended": "recipe", "recommended_distilled": "recipe", "recommended_healed": "healing", "servable": "saving",
}  # fmt: skip
DOCUMENTED = [one for one in NAMES if one not in ("demo", *PRESETS)]  # demo is in the README
RUNS = {  # at full and at small scale
    "calibration_corpus": (4, 2),
    "calibration_size": (4, 4),
    "calibration_text": (9, 2),
    "copying": (12, 2),
    "demo": (7, 7),
    "distillation": (6, 6),
    "distillation_size": (4, 4),
    "generality": (20, 2),
    "healing": (18, 2),
    "ingredients": (4, 4),
    "paper_distilled": (4, 2),
    "paper_mmlu": (16, 4),
    "paper_perplexity": (16, 8),
    "paper_qa": (56, 12),
    "per_layer_patches": (24, 12),
    "pruned_layers": (20, 12),
    "pruner_comparison": (48, 48),
    "recommended": (6, 6),
    "recommended_distilled": (6, 6),
    "recommended_healed": (6, 6),
    "repair": (87, 18),
    "repair_distilled": (9, 2),
    "repair_size": (12, 2),
    "repair_test": (42, 24),
    "relative_weighting": (8, 8),
    "retention": (8, 8),
    "sensitivity": (25, 4),
    "servable": (6, 6),
    "serving": (12, 4),
    "sublayers": (25, 3),
    "top_k": (3, 3),
    "trainable": (4, 4),
}

# Published, but nothing of this package: a trained replacement.
FOREIGN = {"patch": "ffn"}


@pytest.fixture
def plan(monkeypatch, unchecked):
    """Ask for a sweep: its combinations, and a plan of as many as show every setting."""
    sweep = Jobs.sweep
    asked = []

    def sweep_some(self, launcher, settings, combinations, **more):
        sweep(self, launcher, settings, covering(combinations), **more)
        asked[:] = [combinations, self.plan]

    def plan(*words):
        assert main(["run", "-m", *words, "--dry-run"]) == 0
        return asked

    monkeypatch.setattr(Jobs, "sweep", sweep_some)
    return plan


@pytest.mark.parametrize("scale", [pytest.param("full", marks=pytest.mark.slow), "small"])
@pytest.mark.parametrize("experiment", NAMES)
def test_the_bare_command_sweeps(experiment, scale, plan):
    combinations, planned = plan(f"experiment={experiment}", f"scale={scale}")
    assert len(combinations) == RUNS[experiment][scale == "small"]
    assert len({tuple(sorted(combination)) for combination in combinations}) == len(combinations) > 1
    assert not [str(run.error) for run in planned.runs if run.error]
    assert len({run.experiment.run_id for run in planned.runs}) == len(planned.runs)
    assert planned.folder.as_posix() == ("outputs" if experiment in PRESETS else f"outputs/{experiment}")
    for run in planned.runs if scale == "small" else ():
        assert_embedded(run.experiment)


def assert_embedded(experiment):
    """It needs neither the hub nor local data."""
    assert experiment.choices["model"] == "smollm2_135m"
    assert set(experiment.evaluations) <= {"ppl", "smoke"}
    readers = [experiment.calibration_reader, experiment.evaluation_reader]
    readers += [experiment.distillation_reader] if experiment.training else []
    for reader in readers:
        assert reader.corpus.name == "pydoc"
        assert reader.corpus.split(reader.purpose) in SHARES


def test_small_scale_gives_the_experiments_smaller_settings():
    small = compose_experiment(["experiment=paper_distilled", "scale=small", "distill=output_kl"])
    assert small.calibration.num_blocks * small.calibration.block_length <= 8192
    assert small.distillation.num_blocks * small.distillation.block_length <= 8192
    assert small.eval["ppl"].num_blocks == 16


def test_the_command_line_wins_over_the_sweep(plan):
    combinations, planned = plan("experiment=ingredients", "patch=lstsq", "scale=small")
    assert len(combinations) == 2  # those that the patch made equal are one
    assert {run.experiment.choices["patch"] for run in planned.runs} == {"lstsq"}
    combinations, _ = plan("experiment=paper_perplexity", "scale=small", "pruner=tail", "num_pruned_layers=3,4")
    assert len(combinations) == 8


def test_without_combinations_for_small_scale_the_others_stay(plan):
    full, _ = plan("experiment=relative_weighting")
    small, _ = plan("experiment=relative_weighting", "scale=small")
    assert [[word for word in words if not word.startswith("scale=")] for words in small] == [
        [word for word in words if not word.startswith("scale=")] for words in full
    ]


def settings(experiment: str, combinations: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """What each run of a sweep would be, without composing it: the shared settings, and its own over them."""
    composed = compose_config([f"experiment={experiment}"])
    config = resolved(composed)
    shared = {"model": config["model"]["name"], "pruner": "streamline", "patch": "rotate", "distill": "none"}
    shared |= to_experiment(composed).choices
    shared["num_pruned_layers"] = str(config["num_pruned_layers"])
    parser = OverridesParser.create()
    found = []
    for combination in combinations:
        parsed = parser.parse_overrides(list(combination))
        own = {override.get_key_element(): override.get_value_element_as_str() for override in parsed}
        if "corpus@calibration.corpus" in own:
            own["calibration.corpus.name"] = own["corpus@calibration.corpus"]
        found.append(shared | {key.lstrip("+"): value for key, value in own.items()})
    return found


@pytest.mark.parametrize("experiment", [file.parent.name for file in FILES])
def test_every_published_row_is_a_run_of_the_bare_command(experiment, monkeypatch):
    monkeypatch.setattr(Jobs, "sweep", lambda jobs, launcher, settings, combinations, **_: asked.append(combinations))
    asked = []
    main(["run", "-m", f"experiment={experiment}", "--dry-run"])
    (combinations,) = asked
    runs = settings(experiment, combinations)
    wanted = lines(LAYERS) if experiment == LAYERS.parent.name else rows([EXPERIMENTS / experiment / "published.csv"])
    keys = set(wanted[0]) - {"table", "experiment", "values", "source", "layers"}
    for row in wanted:
        if row["num_pruned_layers"] == "0" or any(row.get(key) == text for key, text in FOREIGN.items()):
            continue
        asked = {key: row[key] for key in keys if row[key]}
        assert [run for run in runs if asked.items() <= run.items()], asked


@pytest.mark.parametrize("file", [file for file in FILES if file != LAYERS], ids=lambda file: file.parent.name)
def test_published_figures_are_tidy(file):
    first, *_ = found = lines(file)
    assert list(first)[: len(COLUMNS)] == COLUMNS
    for line in found:
        assert line["model"] in choices("model")
        assert line["pruner"] in {*choices("pruner"), "none"}
        assert line["patch"] in {*choices("patch"), FOREIGN["patch"]}
        assert line["distill"] in choices("distill")
        assert (line["num_pruned_layers"] == "0") == (line["pruner"] == "none")
        assert re.fullmatch(r"ppl/(wikitext2|c4|ptb|average)|qa/\w+|mmlu/average", line["metric"])
        assert float(line["value"]) > 0
        assert line["source"].startswith(f"LinearPatch, Table {line['table']}")
    about = [tuple(text for key, text in line.items() if key not in ("value", "source")) for line in found]
    assert len(set(about)) == len(about)


@pytest.mark.parametrize("row", [row for row in rows() if {"ppl/ptb", "ppl/average"} <= set(row["values"])], ids=name)
def test_published_perplexities_have_the_published_mean(row):
    mean = sum(row["values"][f"ppl/{corpus}"] for corpus in ("wikitext2", "c4", "ptb")) / 3
    assert mean == pytest.approx(row["values"]["ppl/average"], abs=0.0101)


def test_one_figure_in_two_tables_is_one_figure():
    """Tables that show a model again agree: the same removed layers, patch and distillation give the same value."""
    found: dict[tuple, float] = {}
    ablated = ("calibration.num_blocks", "calibration.corpus.name", "distillation.num_blocks", "distill.top_k")
    usual = {"calibration.num_blocks": "128", "calibration.corpus.name": "wikitext2", "distill.top_k": "100"}
    for row in rows():
        if any(row.get(key) not in (None, "", usual.get(key, "5000")) for key in ablated):
            continue
        extra = (row.get("patch.sites", ""), row.get("distill.patch_form") or "full")
        about = (*(row[key] for key in ("model", "num_pruned_layers", "pruner", "patch", "distill")), *extra)
        for metric, value in row["values"].items():
            assert found.setdefault((*about, metric), value) == value, (about, metric)


def test_published_layers_are_as_many_as_removed():
    for line in lines(LAYERS):
        layers = [int(layer) for layer in line["layers"].split(" ")]
        assert len(set(layers)) == len(layers) == int(line["num_pruned_layers"])
        if line["pruner"] == "streamline":
            assert layers == list(range(layers[0], layers[-1] + 1))


@pytest.mark.parametrize("experiment", DOCUMENTED)
def test_every_experiment_has_a_readme_with_its_command(experiment):
    text = (EXPERIMENTS / experiment / "README.md").read_text()
    assert re.search(rf"^linearpatch run -m experiment={experiment}$", text, re.MULTILINE)
    assert f"[{experiment}]({experiment}/README.md)" in (EXPERIMENTS / "README.md").read_text()
    assert f"(experiments/{experiment})" in (CONF_DIR / "experiment" / f"{experiment}.yaml").read_text()


def test_every_folder_is_an_experiment():
    assert sorted(folder.name for folder in EXPERIMENTS.iterdir() if folder.is_dir()) == DOCUMENTED


@pytest.mark.parametrize(("preset", "page"), PRESETS.items())
def test_presets_are_explained(preset, page):
    text = (EXPERIMENTS.parent / "docs" / f"{page}.md").read_text()
    assert re.search(rf"^linearpatch run experiment={preset}( |$)", text, re.MULTILINE)
    assert f"docs/{page}.md" in (CONF_DIR / "experiment" / f"{preset}.yaml").read_text()
