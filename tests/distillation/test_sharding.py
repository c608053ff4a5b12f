"""Layers that are spread over processes train as they do in one piece."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from offloading import dense
from sharded_training import CASES, results, train
from transformers import AutoModelForCausalLM

from linearpatch.distillation.full_kl import FullKL
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import decoder_of
from linearpatch.runtime.distributed import Workers
from linearpatch.storage.cache import Cache

PROGRAM = Path(__file__).with_name("sharded_training.py")
FEW = ["lora", "all of a model on disk", "all of a model with a tied head", "all without some sublayers"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the model is."""
    folder = tmp_path_factory.mktemp("sharded")
    dense("llama", folder / "untied")
    dense("llama", folder / "tied", tie_word_embeddings=True)
    return folder


def launched(folder, names):
    """What two processes get, by case."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(PROGRAM)]
    done = subprocess.run(
        [*launch, str(folder), *names], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def of_two(folder):
    """Of the cases that differ most."""
    return launched(folder, FEW)


@pytest.fixture(scope="module")
def of_others(folder):
    """Of all others."""
    return launched(folder, [name for name in CASES if name not in FEW])


def test_each_process_holds_its_part_of_every_layer(of_two):
    assert of_two["share"] == pytest.approx(0.5, abs=0.01)


def flat(values) -> torch.Tensor:
    return torch.tensor(values).flatten()


def check(name, folder, found, tmp_path):
    """Compare with the training in this process."""
    decoder = decoder_of(AutoModelForCausalLM.from_pretrained(CASES[name].model_folder(folder) / "dense"))
    alone = results(train(CASES[name], decoder, Cache(tmp_path), Workers()), decoder)
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert found["losses"][-1] < found["losses"][0]
    assert found["best_step"] == alone["best_step"] > 0
    assert found["num_trained"] == alone["num_trained"]
    assert found["weights"].keys() == alone["weights"].keys()
    for weight, expected in alone["weights"].items():
        for ours, theirs in zip(found["weights"][weight], expected, strict=True):
            assert torch.allclose(flat(ours), flat(theirs), atol=1e-4)
    for ours, theirs in zip(found["operators"], alone["operators"], strict=True):
        assert torch.allclose(flat(ours), flat(theirs), atol=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_two_processes_train_as_one(name, folder, of_two, tmp_path):
    check(name, folder, of_two[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in FEW])
def test_two_processes_train_anything_as_one(name, folder, of_others, tmp_path):
    check(name, folder, of_others[name], tmp_path)


def test_a_training_that_was_stopped_ends_as_if_it_hadnt_been(of_two):
    assert of_two["lora, resumed"] == of_two["lora"]


@pytest.mark.slow
def test_a_training_of_all_weights_that_was_stopped_does_too(of_others):
    assert of_others["all, resumed"] == of_others["all"]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (OutputKL(sharded=True), r"distill.sharded=true spreads layers over several processes, and this is one"),
        (OutputKL(sharded=True, accumulation=2, on_policy=0.5), r"Use distill.on_policy=0, or distill.sharded=false"),
        (OutputKL(sharded=True, accumulation=2, targets="cached"), r"Use distill.targets=online"),
    ],
)
def test_what_cant_be_sharded_is_told_before_anything_is_loaded(training, message):
    with pytest.raises(ConfigError, match=message):
        training.check_processes(training.accumulation)


def test_models_that_cant_be_sharded_are_rejected(tmp_path):
    decoder = decoder_of(dense("llama", tmp_path).to(torch.float16))
    with pytest.raises(ConfigError, match=r"distill.sharded=true doesn't scale losses.*model.dtype=bfloat16"):
        FullKL(sharded=True).check(decoder)
