"""Trainings of two processes, for test_sharding.py: torchrun --nproc_per_node 2 sharded_training.py FOLDER CASE…"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from edits import edit_of, on_stream
from offloading import on_disk
from test_loop import TEXT, VALIDATION, validation_losses
from transformers import AutoModelForCausalLM

from linearpatch.distillation.distill import distill
from linearpatch.distillation.helping import receive
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.distillation.sharding import local, sharded
from linearpatch.distillation.training import Training
from linearpatch.models.decoder import Decoder, decoder_of
from linearpatch.models.edit import Edit
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.runner import Runner
from linearpatch.models.units import Unit
from linearpatch.runtime.distributed import Workers
from linearpatch.storage.cache import Cache

MATRIX = torch.eye(32) + 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(5))
EDIT = edit_of([2, 3], [(on_stream(2, 4), LinearMap(MATRIX))])
LACKING_PARTS = Edit.without([Unit(2), Unit(4, "attention"), Unit(5, "mlp")])
# Three sequences a step, so that one process has one of them less, and four of validation.
COMMON = OutputKL(
    top_k=20, learning_rate=3e-3, accumulation=3, validations=3, checkpoint_minutes=None, max_grad_norm=0.05
)


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    training: Training
    edit: Edit = EDIT
    is_on_disk: bool = False  # in the first process; in the other it always is
    is_tied: bool = False  # whether the model's head is its embeddings

    def model_folder(self, folder: Path) -> Path:
        """Where its model is."""
        return folder / ("tied" if self.is_tied else "untied")


CASES = {
    "patch": Case(COMMON),
    "lora": Case(replace(COMMON, trainable="lora", lora_rank=4)),
    "norms": Case(replace(COMMON, trainable="norms")),
    "neighbours": Case(replace(COMMON, trainable="neighbours")),
    "last_layers": Case(replace(COMMON, trainable="last_layers", learning_rate=3e-4)),
    "all": Case(replace(COMMON, trainable="all", learning_rate=3e-4)),
    "all with recomputation": Case(replace(COMMON, trainable="all", learning_rate=3e-4, recompute=True)),
    "all of a model on disk": Case(replace(COMMON, trainable="all", learning_rate=3e-4), is_on_disk=True),
    "all of a model with a tied head": Case(replace(COMMON, trainable="all", learning_rate=3e-4), is_tied=True),
    "lora without some sublayers": Case(replace(COMMON, trainable="lora", lora_rank=4), LACKING_PARTS),
    "all without some sublayers": Case(replace(COMMON, trainable="all", learning_rate=3e-4), LACKING_PARTS),
    "a learning rate that is searched": Case(replace(COMMON, trainable="lora", lora_rank=4, learning_rate="auto")),
}


class Interrupted(Exception):
    """Ends a training in the middle."""


def results(distilled, decoder: Decoder) -> dict:
    """What must be the same with one process: losses, and the numbers of what was trained."""
    weights = {f"{name.layer}.{name.name}": change for name, change in distilled.edit.weights.items()}
    return {
        "losses": validation_losses(distilled),
        "best_step": distilled.best_step,
        "num_trained": distilled.num_trained,
        "operators": [placed.module.weight.tolist() for placed in distilled.edit.operators],
        "weights": {
            name: [parameter.tolist() for parameter in change.parameters()] for name, change in weights.items()
        },
    }


def train(case: Case, decoder: Decoder, cache: Cache, workers: Workers, report=lambda point: None):
    """One training in this process."""
    if workers.is_main:
        key = {"weights": weights_hash(decoder.model) if not case.is_on_disk else "on disk"}
        edit, text, validation, seed = case.edit, TEXT, VALIDATION, 0
    else:
        given = receive(workers)
        edit, text, validation, key, seed = given.edit, given.text, given.validation, given.model_key, given.seed
    training = replace(case.training, sharded=workers.count > 1)
    return distill(
        training, decoder, edit, text, validation,
        cache=cache, model_key=key, seed=seed, workers=workers, report=report,
    )  # fmt: skip


def train_in_two_parts(case: Case, decoder: Decoder, cache: Cache, workers: Workers):
    """The same, stopped in the middle and resumed."""

    def stop(point) -> None:
        if point["step"] == 3:
            raise Interrupted

    case = replace(case, training=replace(case.training, checkpoint_steps=2))
    try:
        train(case, decoder, cache, workers, stop)
    except Interrupted:
        pass
    else:
        raise AssertionError("it wasn't stopped")
    return train(case, decoder, cache, workers)


def share_of_layers(decoder: Decoder) -> float:
    """How much of the layers' weights a process holds, when none of them runs."""
    layers = sharded(Runner(decoder, EDIT), torch.device("cpu")).decoder.layers
    held = sum(local(parameter).numel() for parameter in layers.parameters())
    return held / sum(parameter.numel() for parameter in decoder.layers.parameters())


def main(folder: Path, names: Sequence[str]) -> None:
    """Train some cases; the first process writes what it got."""
    workers = Workers.launched()
    found = {"share": share_of_layers(decoder_of(AutoModelForCausalLM.from_pretrained(folder / "untied" / "dense")))}
    for number, name in enumerate(names):
        case = CASES[name]
        where = case.model_folder(folder)
        if case.is_on_disk or not workers.is_main:
            model = on_disk("llama", where, name=f"offload_{number}_{workers.rank}")
        else:
            model = AutoModelForCausalLM.from_pretrained(where / "dense")
        decoder = decoder_of(model)
        before = None if case.is_on_disk or not workers.is_main else weights_hash(model)
        found[name] = results(train(case, decoder, Cache(folder / "caches" / name), workers), decoder)
        assert before is None or weights_hash(model) == before  # the dense model never changes
        if name in ("lora", "all"):
            resumed = train_in_two_parts(case, decoder, Cache(folder / "resumed" / name), workers)
            found[f"{name}, resumed"] = results(resumed, decoder)
    if workers.is_main:
        (folder / "found.json").write_text(json.dumps(found))
    workers.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
