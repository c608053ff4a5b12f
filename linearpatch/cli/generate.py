"""`linearpatch generate`: continue a text with a saved model."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from linearpatch.choices import choices
from linearpatch.errors import ConfigError
from linearpatch.overrides import override
from linearpatch.runtime.progress import out

HELP = "continue a text with a saved model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("folder", help="a checkpoint, or the folder of the run that wrote it")
    parser.add_argument("prompt", help="text to continue; - reads it from standard input")
    parser.add_argument("--chat", action="store_true", help="answer the prompt, by the tokenizer's chat template")
    parser.add_argument("--base", help="for an adapter: the dense model, a choice of `linearpatch list model`, "
                        "a hub id or a folder")  # fmt: skip
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16; auto is the checkpoint's")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto is the first GPU, else the CPU")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="tokens to write at most (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (%(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling: probability mass (%(default)s)")
    parser.add_argument("--num-beams", type=int, default=1, help="beam search, printed at the end (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed for sampling (%(default)s)")
    parser.add_argument("--no-cache", action="store_true", help="recompute keys and values for every token")


def execute(arguments: argparse.Namespace) -> int:
    """Load a checkpoint, or a dense model with an adapter, and print what it writes."""
    from linearpatch.checkpoint.generation import Decoding, write_text

    decoding = Decoding(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        num_beams=arguments.num_beams,
        seed=arguments.seed,
        use_cache=not arguments.no_cache,
    )
    try:
        prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
        prompt.encode()
    except UnicodeError as error:
        raise ConfigError(f"The prompt isn't UTF-8 text: {error}.") from error
    model, tokenizer = _load(arguments.folder, arguments.base, arguments.dtype, arguments.device)
    text = write_text(model, tokenizer, prompt, decoding, chat=arguments.chat)
    if decoding.num_beams > 1:  # everything else has been printed token by token
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def _load(folder: str, base: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    """The model and tokenizer of a checkpoint; those of `base` with the adapter where it is one."""
    from linearpatch.checkpoint.loading import apply, checkpoint_folder, load, load_tokenizer
    from linearpatch.checkpoint.manifest import read_manifest
    from linearpatch.config import compose_experiment
    from linearpatch.models.hub import HubModel
    from linearpatch.models.model import Model
    from linearpatch.storage.cache import default_cache_dir

    path = checkpoint_folder(folder)
    manifest = read_manifest(path)
    if manifest.format != "adapter":
        if base is not None:
            raise ConfigError(f"{path} is a whole model, not an adapter. Leave --base out.")
        placing = HubModel(path=str(path), dtype=dtype, device=device)
        return load(path, dtype=placing.torch_dtype, **placing.placement), load_tokenizer(path)
    if base is None:
        raise ConfigError(
            f"{path} is an adapter. Name its dense model: --base {manifest.base.name} (a choice of `linearpatch list "
            "model`, a hub id or a folder)."
        )
    source: Model = HubModel(path=base, dtype=dtype, device=device)
    if base in choices("model"):
        settings = {"dtype": dtype, "device": device}
        chosen = [override(f"model.{name}", value, literal=True) for name, value in settings.items() if value != "auto"]
        source = compose_experiment([f"model={base}", *chosen]).model
    dense = source.load(default_cache_dir())
    return apply(dense.decoder.model, path), dense.tokenizer
