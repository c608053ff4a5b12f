"""Whether llama.cpp computes with a GGUF file what transformers computes with the checkpoint of the same run.

    python experiments/serving/verify.py CHECKPOINT FILE.gguf TEXT

It prints the largest difference of logits past five prompts, over the largest logit; the perplexity that each gives to
the first eight windows of 512 tokens of a text; and whether 32 tokens written after each prompt are the same.
llama.cpp is installed by `cd tests/llama_cpp && npm install --no-save --omit=optional --ignore-scripts`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from math import exp
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import linearpatch as lp

SCRIPTS = Path(__file__).parents[2] / "tests" / "llama_cpp"
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Question: What is 12 + 30?\nAnswer:",
    "Die größte Stadt in Deutschland",
)
WINDOWS, LENGTH, WRITTEN = 8, 512, 32


def main(checkpoint: Path, file: Path, text: Path) -> None:
    """Print the three comparisons."""
    model, tokenizer = lp.load(checkpoint, dtype=torch.float32), lp.load_tokenizer(checkpoint)
    show = Console(soft_wrap=True, markup=False, highlight=False).print
    with torch.no_grad():
        differences = logit_differences(model, file)
        show(f"logits: largest difference / largest logit {max(differences):.1e} over {len(differences)} prompts")
        ids = torch.tensor(tokenizer(text.read_text()).input_ids[: WINDOWS * LENGTH]).view(-1, LENGTH)
        ours, served = perplexity(model, ids), perplexity_in_llama_cpp(file, ids)
        ratio = f"{served / ours - 1:+.2%}"
        show(f"perplexity of {len(ids)} × {LENGTH} tokens: {ours:.4f}, in llama.cpp {served:.4f} ({ratio})")
        for prompt in PROMPTS:
            expected = generate(model, tokenizer, prompt).rstrip("\n")
            written = run("generate.mjs", file, prompt, WRITTEN).rstrip("\n")
            show("same text:" if expected == written else "OTHER TEXT:", repr(written[len(prompt) :]))


def logit_differences(model: Any, file: Path) -> list[float]:
    """By prompt, over the largest logit; tokens are llama.cpp's."""
    answers = json.loads(run("logits.mjs", file, *PROMPTS))
    differences = []
    for answer in answers:
        expected = model(torch.tensor([answer["tokens"]])).logits[0, -1]
        difference = (torch.tensor(answer["logits"]) - expected).abs().max() / expected.abs().max()
        differences.append(float(difference))
    return differences


def perplexity(model: Any, windows: Tensor) -> float:
    """Of windows of tokens, in transformers."""
    losses = []
    for window in windows:
        logits = model(window[None]).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]))
    return float(torch.stack(losses).mean().exp())


def perplexity_in_llama_cpp(file: Path, windows: Tensor) -> float:
    """Of windows of tokens, in llama.cpp."""
    with NamedTemporaryFile("w", suffix=".json") as listed:
        json.dump(windows.tolist(), listed)
        listed.flush()
        losses = json.loads(run("perplexity.mjs", file, listed.name))
    return exp(sum(losses) / len(losses))


def generate(model: Any, tokenizer: Any, prompt: str) -> str:
    """The prompt and the likeliest tokens after it, in transformers."""
    inputs = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=WRITTEN, do_sample=False)
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


def run(script: str, *arguments: object) -> str:
    """What a script of tests/llama_cpp prints."""
    words = ["node", str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
