"""What llama.cpp computes with a GGUF file, by the scripts beside this one; tests skip where it isn't installed."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
INSTALL = "npm install --no-save --omit=optional --ignore-scripts"


def require_llama_cpp() -> None:
    """Skip a test where Node or the package is missing."""
    if shutil.which("node") is None:
        pytest.skip("Node isn't installed")
    if not (HERE / "node_modules" / "node-llama-cpp").is_dir():
        pytest.skip(f"llama.cpp isn't installed: cd tests/llama_cpp && {INSTALL}")


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(["node", HERE / script, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def logits(file: Path, *prompts: str) -> list[tuple[list[int], torch.Tensor]]:
    """Tokens of each prompt, and the logits past the last of them."""
    require_llama_cpp()
    answers = json.loads(_run("logits.mjs", str(file), *prompts))
    return [(answer["tokens"], torch.tensor(answer["logits"])) for answer in answers]


def generate(file: Path, prompt: str, count: int) -> str:
    """The prompt and what follows, the likeliest token each time."""
    require_llama_cpp()
    return _run("generate.mjs", str(file), prompt, str(count)).removesuffix("\n")
