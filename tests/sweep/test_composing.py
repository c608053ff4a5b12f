"""What a sweep composes for a run, part by part, is what Hydra composes for it as a whole."""

import itertools

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf

from linearpatch.choices import CONF_DIR
from linearpatch.config import job_config, register_schemas
from linearpatch.sweep.composing import Composer

MIXED = (
    "",
    "pruner=sleb",
    "pruner=sleb patch=lstsq num_pruned_layers=3",
    "pruner=patch_aware pruner.search=greedy patch=refit patch.gain=1.1 seed=3",
    "model=random corpus=wikitext2 corpus.evaluation=validation eval=[ppl,smoke] eval.ppl.seq_len=64",
    "corpus@calibration.corpus=c4 calibration=sleb calibration.num_blocks=4",
    "calibration=sleb corpus@calibration.corpus=mixture corpus@calibration.corpus.parts.wikitext2=ptb",
    "distill=output_kl distill.learning_rate=1e-3 corpus@distillation.corpus=ptb",
    "experiment=recommended pruner=tail",
    "experiment=repair_test scale=small pruner=tail patch=diag seed=1",
    "debug=tiny eval=[ppl] tracker=none model=smollm2_135m",
    "+corpus@eval.ppl.corpora.other=c4 pruner=sleb",
    "output_dir=o/${hydra:runtime.choices.pruner} pruner=taylor group='a, b'",
    "pruner=global_mine patch=lstsq",
    "pruner=mine patch=lstsq",
    "eval=[]",
    "tracker=[jsonl,wandb] tracker.wandb.project=mine pruner=tail",
    "experiment=recommended tracker=[]",
    "stages=[dense] ++seed=4",
)


@pytest.fixture(scope="module")
def composers(tmp_path_factory):
    """Both ways to compose; with choices of a user, of which one reaches other settings."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "pruner").mkdir()
    (folder / "pruner" / "mine.yaml").write_text("defaults: [explicit_schema, _self_]\nlayers: [1, 4]\n")
    reaching = "# @package _global_\ndefaults: [tail_schema@pruner, _self_]\npatch: {compare: false}\n"
    (folder / "pruner" / "global_mine.yaml").write_text(reaching)
    register_schemas()
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        shared = [f"hydra.searchpath=[file://{folder}]", "num_pruned_layers=4"]
        master = loader.load_configuration("config", shared, RunMode.MULTIRUN)
        composer = Composer(loader, master)
        yield (lambda words: loader.load_sweep_config(master, words)), composer


@pytest.mark.parametrize("combination", MIXED)
def test_a_run_composed_from_parts_equals_the_whole(combination, composers):
    words = [word.replace("~", " ") for word in combination.replace(", ", ",~").split()]
    plain, composer = composers
    expected = job_config(plain(list(words)))
    for _ in range(2):  # what is kept has not changed
        found = job_config(composer(words))
        assert OmegaConf.to_container(found, resolve=False) == OmegaConf.to_container(expected, resolve=False)
        assert OmegaConf.to_object(found) == OmegaConf.to_object(expected)
        assert list(found) == list(expected)


def test_errors_are_those_of_hydra(composers):
    plain, composer = composers
    for words in (["pruner.search=beam", "pruner=tail"], ["patch.nothing=1"], ["pruner=nothing"], ["seed=x"]):
        with pytest.raises(Exception) as expected:  # noqa: PT011 — whichever Hydra raises
            plain(words)
        with pytest.raises(type(expected.value)) as found:
            composer(words)
        assert str(found.value) == str(expected.value)


def test_each_choice_is_composed_once_whatever_the_number_of_runs(composers):
    """What planning costs: `linearpatch bench startup` says how many milliseconds that is."""
    _, composer = composers
    before = composer._composed.cache_info().misses
    pruners, patches = ("random", "angular", "magnitude"), ("scalar", "mlp_refit", "none")
    for pruner, patch, seed in itertools.product(pruners, patches, range(4)):
        composer([f"pruner={pruner}", f"patch={patch}", f"seed={seed}"])
    assert composer._composed.cache_info().misses - before <= 1 + len(pruners) + len(patches)
