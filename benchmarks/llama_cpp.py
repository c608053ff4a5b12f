"""Reading and writing in llama.cpp on the CPU: dense, pruned and patched GGUF files, one thread."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure import Claim, embedded_model
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import norm_epsilon
from linearpatch.models.edit import Edit, PlacedOperator, Site
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import FeatureMap, GatedMlp, Operator
from linearpatch.models.places import OnStream
from linearpatch.models.units import Interface

SCRIPTS = Path(__file__).parents[1] / "tests" / "llama_cpp"
START, END = 12, 19
PROMPT, WRITTEN, ROUNDS = 256, 32, 5
WIDTH = 512


def claims() -> list[Claim]:
    """A patched model is at least as fast as one with a dense layer more.

    Raises:
        ConfigError: llama.cpp isn't installed.
    """
    if shutil.which("node") is None or not (SCRIPTS / "node_modules" / "node-llama-cpp").is_dir():
        raise ConfigError(
            "llama.cpp isn't installed. With Node: cd tests/llama_cpp && npm install --no-save --omit=optional "
            "--ignore-scripts"
        )
    model = embedded_model()
    with TemporaryDirectory() as folder:
        files = {name: _write(Path(folder) / name, model, edit) for name, edit in edits(model).items()}
        seconds = speed(files)
    found = []
    for name, limit_name in (("linear map", "a layer more"), ("MLP", "a layer more"), ("pruned", "dense")):
        for step, tokens in (("prefill", PROMPT), ("decode", WRITTEN)):
            ours, other = seconds[name][step], seconds[limit_name][step]
            detail = f"{tokens / ours:.0f} / {tokens / other:.0f} tokens/s, f32, one thread"
            found.append(Claim(f"{step}: {name} / {limit_name}", ours / other, 1.0, "", detail))
    return found


def edits(model: LoadedModel) -> dict[str, Edit]:
    """The dense model, it without 7 layers, without 6, and without 7 with a linear map or an MLP in their place."""
    pruned, size = Edit.of_layers(range(START, END)), model.decoder.hidden_size
    epsilon = norm_epsilon(model.decoder)
    linear = FeatureMap([torch.eye(size)], True, bias=torch.zeros(size), epsilon=epsilon)
    inward = torch.ones(size, WIDTH)
    mlp = GatedMlp(inward, inward, inward.T, torch.zeros(size), epsilon)
    return {
        "dense": Edit(),
        "pruned": pruned,
        "a layer more": Edit.of_layers(range(START + 1, END)),
        "linear map": pruned.with_operators([_placed(linear)]),
        "MLP": pruned.with_operators([_placed(mlp)]),
    }


def _placed(operator: Operator) -> PlacedOperator:
    return PlacedOperator(Site(Interface(START, END), END, OnStream(END)), operator)


def _write(folder: Path, model: LoadedModel, edit: Edit) -> Path:
    save_checkpoint(folder, model, edit, save_format="gguf", name=folder.name)
    return folder / "model.gguf"


def speed(files: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Seconds for `prefill` and `decode` of each file."""
    words = ["node", *map(str, (SCRIPTS / "speed.mjs", PROMPT, WRITTEN, ROUNDS, *files.values()))]
    answers = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return dict(zip(files, answers, strict=True))
