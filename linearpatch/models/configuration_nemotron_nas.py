"""The configuration of a model whose layers may lack attention, as transformers reads it.

This file lies beside the weights of such a model, because transformers doesn't know the family: with
`trust_remote_code=True` (vLLM: `--trust-remote-code`) `config.json` is read by it. It computes nothing; MLX doesn't
need it.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class Settings(dict[str, Any]):
    """A part of a configuration; its values are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class NemotronNasConfig(LlamaConfig):  # type: ignore[misc]
    """Llama's configuration, and what each layer is made of.

    Args:
        block_configs: For each layer its `attention` and its `ffn`.
        settings: Llama's.
    """

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.block_configs = [
            Settings({name: Settings(part) for name, part in block.items()}) for block in block_configs or []
        ]
