"""The pruner removes the layers that it should, from Python and by its YAML."""

from pathlib import Path

import pytest

import linearpatch as lp
from linearpatch.config import compose_config, to_experiment
from linearpatch.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf"


def test_every_other_layer_of_a_model_in_memory():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8}
    model, tokenizer = lp.load_model("random", settings=sizes)
    data = lp.tokens(["A text of some length. " * 100], tokenizer, blocks=2, length=16)
    assert lp.prune(model, data, num_layers=3, pruner="every_other", step=2).removed_layers == (0, 2, 4)
    assert lp.prune(model, data, num_layers=5, pruner="every_other", step=2).removed_layers == (0, 2, 4, 6, 1)


def test_the_yaml_is_a_choice():
    experiment = to_experiment(compose_config(["model=random", "pruner=every_third"], [str(CONF)]))
    assert (experiment.pruner.step, experiment.pruner.protect_first) == (3, 1)


def test_an_impossible_step_is_rejected():
    with pytest.raises(ConfigError, match=r"pruner\.step is 0"):
        lp.pruners.EveryOther(step=0)
