"""Every YAML composes, says what it is for, and every mistake has a sentence."""

import re
import shlex

import pytest
from conftest import tiny_model  # noqa: F401

from linearpatch.choices import CONF_DIR, choices
from linearpatch.config import compose_config, compose_experiment
from linearpatch.errors import ConfigError
from linearpatch.registry import GROUPS, LIST_GROUPS, components

YAMLS = sorted(CONF_DIR.rglob("*.yaml"))


@pytest.mark.parametrize("file", YAMLS, ids=lambda f: str(f.relative_to(CONF_DIR)))
def test_every_yaml_starts_with_its_purpose_and_the_command_that_runs_it(file):
    comments = [line for line in file.read_text().splitlines()[:4] if line.startswith("#") and "@package" not in line]
    assert re.match(r"# \S.*[.:)]", comments[0])
    assert comments[1].startswith("#   linearpatch run")


@pytest.mark.parametrize("file", YAMLS, ids=lambda f: str(f.relative_to(CONF_DIR)))
def test_every_choice_composes_by_the_command_in_its_yaml(file):
    if file == CONF_DIR / "tracker" / "mlflow.yaml":
        pytest.importorskip("mlflow")
    command = next(line for line in file.read_text().splitlines() if line.startswith("#   linearpatch run"))
    words = shlex.split(command.removeprefix("#   linearpatch run").replace("FOLDER", ".").replace("-m ", ""))
    words = [word for word in words if not word.startswith("sweep=")]
    words = [re.sub(r"^(pruner|patch|num_pruned_layers|seed)=(\w+),.*", r"\1=\2", word) for word in words]
    group, choice = str(file.parent.relative_to(CONF_DIR)), file.stem
    is_chosen = any(re.match(rf"\+?{group}(@[\w.]+)?=(\[|\[.*,)?{choice}\b", word) for word in words)
    if group != "." and not is_chosen:  # the command shows settings of a choice that is made by default
        words.append(f"{group}=[{choice}]" if group in LIST_GROUPS else f"{group}={choice}")
    compose_experiment(words)


@pytest.mark.parametrize("group", GROUPS)
def test_every_component_is_a_choice_or_the_schema_of_one(group):
    named = set(choices(group))
    text = "".join(file.read_text() for file in (CONF_DIR / group).glob("*.yaml"))
    for name in components(group):
        assert name in named or f"{name}_schema" in text
    assert all(choices(group).values())


def test_no_target_strings_but_those_of_hydras_plugins():
    named = [file for file in YAMLS if "_target_" in file.read_text()]
    assert {file.parents[1].name for file in named} == {"hydra"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pruner=slebb", "Did you mean 'sleb'?"),
        ("patch=rotat", "Did you mean 'rotate'?"),
        ("eval=[pll]", "Did you mean 'ppl'?"),
        ("pruner.protect_frist=1", "Did you mean 'protect_first'?"),
        ("modle=smollm2_135m", "Did you mean 'model'?"),
        ("+pruner.colour=red", "'colour' doesn't exist"),
        (
            "pruner.protect_first=abc",
            "pruner.protect_first is 'abc'. Allowed: a whole number.",
        ),
        ("save_model=maybe", "save_model is 'maybe'. Allowed: true or false."),
        ("pruner.protect_first=-1", "Allowed: at least 0"),
        (
            "corpus.path=my.txt",
            "'corpus.path' doesn't exist with corpus=pydoc. It is a setting of corpus=text or corpus=hub",
        ),
        ("num_pruned_layers=0", "Allowed: at least 1"),
        ("stages=[dens]", "Did you mean 'dense'?"),
        ("model.dtype=int4", "Allowed: auto, bfloat16, float16, float32"),
        ("model.device=gpu", "Allowed: auto, cpu, cuda"),
        ("calibration.sampling=all", "Allowed: crops, document_crops, first, windows"),
        ("tracker.wandb.mode=on", "Allowed: offline, online"),
        ("datasets_dir=/nonexistent", "not a folder"),
        ("corpus.calibration=evaluation", "share text"),
        ("eval=[ppl,ppl_pydoc]", "eval.ppl and eval.ppl_pydoc both measure ppl/pydoc. Leave one of them out of"),
        ("just words", "can't be parsed"),
        (
            "corpus.path=tëxt (v2).txt",
            """can't be parsed. Write key=value or group=choice; a text with other """
            """characters in quotes: 'corpus.path="tëxt (v2).txt"'""",
        ),
        (
            "corpus.path=a,b.txt",
            """has a comma. For a run with each value add -m (in Python: linearpatch.run_sweep).""",
        ),
        ("corpus.path=a,b.txt", """in quotes: 'corpus.path="a,b.txt"'"""),
        (
            "num_pruned_layers='5,7'",
            "For a run with each, write num_pruned_layers: {values: [5,7]} in",
        ),
        ("output_dir=", "output_dir is empty. Name a folder, or leave output_dir out."),
        ("cache_dir=", "cache_dir is empty"),
        ("output_dir=o/${pruner}", "For its name write ${hydra:runtime.choices.pruner}"),
        ("output_dir=${pruner}", "output_dir=${pruner} would contain all settings of pruner"),
        ("output_dir=o/${hydra:runtime.choices.prunr}", "prunr is not a group. Did you mean 'pruner'?"),
        ("patch=null", "patch=null chooses nothing. Leave it out. Allowed: average_update, "),
        ("corpus@calibration.corpus=null", "or set the value calibration.corpus=null to have none."),
        ("calibration.corpus=c4", "not set as a value: corpus@calibration.corpus=c4."),
        ("evaluation.corpus=c4", "not set as a value: corpus@evaluation.corpus=c4."),
        ("+eval.ppl.corpora.other=c4", "not set as a value: +corpus@eval.ppl.corpora.other=c4."),
        ("calibration.num_blocks=0", "calibration.num_blocks is 0. Allowed: at least 1."),
        ("distillation.block_length=1", "distillation.block_length is 1. Allowed: at least 2."),
        ("eval.ppl.num_blocks=0", "eval.ppl.num_blocks is 0. Allowed: at least 1."),
        ("eval.ppl.batch_size=0", "Allowed: at least 1"),
        ("calibration.batch_size=0", "Allowed: at least 1"),
        ("seed=-1", "seed is -1. Allowed: from 0"),
        ("seed=99999999999999999999", "Allowed: from 0 to 9223372036854775807"),
        ("stages=[]", "stages is empty"),
        ("pruner=[sleb,taylor]", "a run takes one pruner. For a run with each, sweep (-m) over pruner=sleb,taylor;"),
        ("corpus@evaluation.corpus=[c4,ptb]", "in a sweep's file that is corpus@evaluation.corpus: 'c4,ptb'."),
    ],
)
def test_every_mistake_has_a_sentence(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        compose_experiment([override])
    assert "Traceback" not in str(error.value)


GENERATED = "+corpus@calibration.corpus.parts.mine=generated"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus@calibration.corpus=generated", "calibration.corpus.top_p=2"], "calibration.corpus.top_p is 2.0."),
        (
            ["corpus@calibration.corpus=broad", GENERATED, "calibration.corpus.parts.mine.prompts=[Hello]"],
            "Add calibration.corpus.parts.mine.conversations=true.",
        ),
        (
            ["corpus@calibration.corpus=broad", "calibration.corpus.calibration=train"],
            "such as calibration.corpus.parts.NAME.calibration=train.",
        ),
        (["eval=[ppl_pydoc]", "eval.ppl_pydoc.num_blocks=0"], "eval.ppl_pydoc.num_blocks is 0."),
        (["distillation.num_blocks=0"], "distillation.num_blocks is 0."),
        ([GENERATED], "such as corpus@calibration.corpus=broad."),
        (
            ["corpus@calibration.corpus=broad", "calibration.corpus.parts.pydoc=c4"],
            "not set as a value: corpus@calibration.corpus.parts.pydoc=c4.",
        ),
        (
            [
                "corpus@calibration.corpus=broad",
                "calibration.corpus.parts.own=null",
                "calibration.corpus.parts.pydoc=null",
            ],
            "corpus broad has no parts. Add some: +corpus@calibration.corpus.parts.NAME=CORPUS.",
        ),
        (
            ["eval=[divergence]", *(f"+corpus@eval.divergence.corpora.{key}=generated" for key in "ab")],
            "both called 'generated', and so would be their metrics. Call one otherwise: eval.divergence.corpora.b.",
        ),
        (["eval=[long]", "eval.long.lengths=512"], "eval.long.lengths takes a list. Write it in brackets"),
    ],
)
def test_errors_name_settings_where_they_are(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        compose_experiment(overrides)
    assert " corpus." not in f" {error.value}"


def test_a_corpus_sets_all_readers_and_each_can_be_overridden_alone():
    both = compose_experiment(["corpus=wikitext2"])
    assert both.calibration_reader.source == "wikitext2/train[:50%]"
    assert both.evaluation_reader.source == "wikitext2/test"
    one = compose_experiment(["corpus=wikitext2", "corpus@evaluation.corpus=ptb"])
    assert one.calibration_reader.source == "wikitext2/train[:50%]"
    assert one.evaluation_reader.source == "ptb/validation"
    settings = compose_experiment(["corpus=text", "corpus.path=a.txt"])
    assert settings.calibration_reader.corpus.path == settings.evaluation_reader.corpus.path == "a.txt"


def test_names_of_choices_can_be_parts_of_texts():
    names = "${hydra:runtime.choices.pruner}-${num_pruned_layers}-${hydra:runtime.choices.corpus@calibration.corpus}"
    composed = compose_experiment([f"output_dir=o/{names}", "pruner=sleb", "corpus@calibration.corpus=c4"])
    assert composed.output_dir == "o/sleb-5-c4"
    assert compose_experiment(["output_dir='o/\\${pruner}'"]).output_dir == "o/${pruner}"


def test_a_folder_of_choices_may_have_any_name(tmp_path):
    folder = tmp_path / "conf, x (1) ${y} it's"
    (folder / "pruner").mkdir(parents=True)
    (folder / "pruner" / "mine.yaml").write_text("defaults: [explicit_schema, _self_]\nlayers: [1, 4]\n")
    config = compose_config(["pruner=mine", "num_pruned_layers=2"], [str(folder)])
    assert list(config.pruner.layers) == [1, 4]


def test_run_id_hashes_what_makes_the_model():
    base = compose_experiment([]).run_id
    for same in (
        "eval.ppl.seq_len=64",
        "tracker=none",
        "output_dir=x",
        "stages=[dense]",
        "group=g",
        "model.device=cpu",
    ):
        assert compose_experiment([same]).run_id == base
    for other in ("seed=1", "num_pruned_layers=6", "pruner=sleb", "patch=diag", "patch.estimator=mean_of_ratios",
                  "calibration.num_blocks=8", "corpus.seed=2", "model.dtype=bfloat16"):  # fmt: skip
        assert compose_experiment([other]).run_id != base


def test_an_algorithms_version_is_part_of_the_run_id(monkeypatch):
    from linearpatch.pruners.streamline import Streamline

    base = compose_experiment([]).run_id
    monkeypatch.setattr(Streamline, "version", 2)
    assert compose_experiment([]).run_id != base


def test_configs_are_values():
    experiment = compose_experiment([])
    with pytest.raises(AttributeError):
        experiment.seed = 3
    assert experiment == compose_experiment([])


@pytest.mark.parametrize(
    ("words", "measured"),
    [
        (["patch=none", "stages=[dense,patched]"], ["dense", "pruned"]),
        (["patch=none", "stages=[patched,distilled]"], ["pruned"]),
        (["patch=lstsq", "stages=[dense,distilled]"], ["dense", "patched"]),
        (["patch=lstsq"], ["dense", "pruned", "patched"]),
        (["patch=none", "distill=output_kl", "distill.trainable=lora", "stages=[distilled]"], ["distilled"]),
    ],
)
def test_a_stage_that_there_is_not_is_the_one_before(words, measured):
    assert compose_experiment(words).measured_stages == measured


def test_a_text_of_an_evaluation_can_be_left_out():
    composed = compose_experiment(["eval=[divergence_generated]", "eval.divergence_generated.corpora.generated=null"])
    (reader,) = composed.evaluations["divergence_generated"].readers(composed.evaluation_reader)
    assert reader == composed.evaluation_reader


@pytest.mark.parametrize(
    "words",
    [
        ["eval.ppl.seq_len=4500"],
        ["calibration.block_length=4500"],
        ["eval=[generation]", "eval.generation.prompt_length=4500"],
        ["distill=output_kl", "distillation.block_length=4500", "stages=[dense,distilled]"],
    ],
)
def test_nothing_longer_than_the_model_reads_is_measured(words):
    experiment = compose_experiment(["model=random", *words])
    key = words[0].partition("=")[0] if len(words) == 1 else words[1].partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)} is 4,500, and the model reads 4,096 tokens"):
        experiment.check_model(experiment.model.config(experiment.cache_path))
