"""Conversion of a repository on the hub, or of a local folder, whose family transformers doesn't load without its code.

The repository's own code is neither downloaded nor run: configuration, tokenizer and weights are read as data.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import hf_hub_download, snapshot_download
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from linearpatch.errors import ConfigError, ModelError, StorageError, require_path
from linearpatch.models.auto import model_class
from linearpatch.models.blueprint import blueprint_of
from linearpatch.models.converted import ConvertedModel
from linearpatch.models.fingerprint import file_hash
from linearpatch.models.hub import CONFIG, HubModel
from linearpatch.models.loaded_weights import DERIVED
from linearpatch.models.weight_files import PICKLED, SAFETENSORS, bin_not_allowed, read_weights, weight_files

log = logging.getLogger(__name__)

GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
DATA = ("*.json", "tokenizer.model")  # read as data; no *.py


@dataclass(frozen=True)
class ConvertedRepository(ConvertedModel):
    """A causal language model by hub id or local folder, converted from the layout of its own code.

    A family says what its configuration means (`target_config`), what each weight becomes (`target_weights`), and
    how its tokenizer is built (`target_tokenizer`).

    Attributes:
        path: Hub id, or a folder with config.json, weights and the tokenizer's files.
        revision: Commit, tag or branch of the hub; pin it to make a run repeatable.
        allow_bin: Read weights that come as pickled .bin files, by `torch.load(weights_only=True)`.
    """

    conversion: ClassVar[int] = 1  # raised when the converted checkpoint changes
    family: ClassVar[str] = ""  # how converted folders are called

    path: str = ""
    revision: str | None = None
    allow_bin: bool = field(default=False, metadata={"identity": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_path("model.path", self.path)

    @abstractmethod
    def target_config(self, source: Mapping[str, Any]) -> PreTrainedConfig:
        """The configuration of the converted model.

        Args:
            source: The original config.json.

        Raises:
            ModelError: it describes a model that can't be converted exactly.
        """

    @abstractmethod
    def target_weights(self, name: str, weight: Tensor) -> Iterable[tuple[str, Tensor]]:
        """What a weight of the original becomes: names and values in the converted model."""

    @abstractmethod
    def target_tokenizer(self, folder: Path) -> Any:
        """The tokenizer, from the original's folder."""

    @property
    def label(self) -> str:
        """The name, or the last part of the path."""
        return self._as_hub.label

    @property
    def origin(self) -> str:
        """The hub id or folder."""
        return self._as_hub.origin

    @property
    def hub_id(self) -> str:
        """The path, unless it is a folder."""
        return self._as_hub.hub_id

    @property
    def known_license(self) -> str:
        """The licence that was set, or the one that the original's card names."""
        return self._as_hub.known_license

    def config(self, cache_dir: Path) -> PreTrainedConfig:
        """The configuration of the converted model, from the original's alone."""
        if not self.path:
            raise ConfigError(f"model={self.family} needs model.path=ID or model.path=FOLDER.")
        if self._is_folder:
            file = Path(self.origin) / CONFIG
        else:
            try:
                file = Path(hf_hub_download(self.path, CONFIG, revision=self.revision))
            except Exception as error:
                raise self._unreachable(error) from error
        try:
            source = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} can't be read: {error}. Download the model again.") from error
        try:
            return self.target_config(source)
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file} lacks what a {self.family} configuration has: {error!r}.") from error

    def checkpoint_name(self, cache_dir: Path) -> str:
        """The family, and a hash of all files that are converted."""
        folder = self._folder()
        digest = hashlib.sha256(f"conversion {self.conversion}".encode())
        others = [file for pattern in DATA for file in sorted(folder.glob(pattern)) if file.name != INDEX]
        for file in [*others, *weight_files(folder, allow_bin=self.allow_bin)]:
            digest.update(f"{file.name}:{file_hash(file, cache_dir)}".encode())
        return f"{self.family}-{digest.hexdigest()[:16]}"

    def tokenizer(self, cache_dir: Path) -> Any | None:
        """That of the converted checkpoint, where the original is on this machine and was converted."""
        try:
            self._folder(local_files_only=True)
            return super().tokenizer(cache_dir)
        except ModelError:  # loading the model says what is wrong with it
            return None

    def write_checkpoint(self, folder: Path, cache_dir: Path) -> None:
        """Convert one weight file after the other; memory holds one of them and what becomes of it."""
        config = self.config(cache_dir)
        source = self._folder()
        files = weight_files(source, allow_bin=self.allow_bin)
        log.info("converting %s once into a plain %s checkpoint", self.origin, config.model_type)
        self.target_tokenizer(source).save_pretrained(folder)
        expected = blueprint_of(model_class(type(config)), config)
        shapes = {name: tensor.shape for name, tensor in expected.state_dict().items()}
        places: dict[str, str] = {}
        for index, file in enumerate(files, start=1):
            target = f"model-{index:05d}-of-{len(files):05d}.safetensors"
            weights = self._converted(read_weights(file), shapes, file)
            places |= dict.fromkeys(weights, target)
            try:
                save_file(weights, folder / target, metadata={"format": "pt"})
            except OSError as error:
                raise StorageError(f"Can't write {folder / target}: {error}. Free some space.") from error
        missing = sorted({name for name, _ in expected.named_parameters()} - places.keys())
        if missing:
            raise ModelError(f"{self.origin} has no weights for {', '.join(missing[:4])}. Download the model again.")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2), encoding="utf-8")
        config.architectures = [type(expected).__name__]
        config.save_pretrained(folder)
        if (source / GENERATION).is_file():
            (folder / GENERATION).write_bytes((source / GENERATION).read_bytes())

    def _converted(self, source: Mapping[str, Tensor], shapes: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
        """The converted weights of one file, each in memory of its own."""
        weights: dict[str, Tensor] = {}
        for old, weight in source.items():
            if DERIVED.search(old):  # tables that the model computes
                continue
            for name, value in self.target_weights(old, weight):
                if shapes.get(name) != value.shape:
                    place = f"one of shape {list(shapes[name])}" if name in shapes else "no weight"
                    raise ModelError(
                        f"{file}: {old} becomes {name} of shape {list(value.shape)}, for which the model of its "
                        f"config.json has {place}. Use the config.json that belongs to the weights."
                    )
                weights[name] = value.contiguous().clone()
        return weights

    @property
    def _is_folder(self) -> bool:
        return Path(self.origin).is_dir()

    def _folder(self, *, local_files_only: bool = False) -> Path:
        """Folder with all files of the original, downloaded where it is on the hub.

        Raises:
            ModelError: they can't be had, or only as pickles, which aren't allowed.
        """
        if self._is_folder:
            return Path(self.origin)

        def download(*patterns: str) -> Path:
            folder = snapshot_download(
                self.path, revision=self.revision, allow_patterns=list(patterns), local_files_only=local_files_only
            )
            return Path(str(folder))

        try:
            folder = download(*DATA, SAFETENSORS)
            if any(folder.glob(SAFETENSORS)):
                return folder
            if self.allow_bin:
                return download(*DATA, PICKLED)
        except Exception as error:  # of the network, of access, or of a name
            raise self._unreachable(error) from error
        raise bin_not_allowed(self.path)

    def _unreachable(self, error: BaseException) -> ModelError:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        return ModelError(
            f"model {self.label}: {self.path} can't be downloaded: {reason} Check the id and your access to it, or "
            "give a folder that holds the model: model.path=FOLDER."
        )

    @property
    def _as_hub(self) -> HubModel:
        """What is known of where it comes from."""
        return HubModel(name=self.name, source=self.source, license=self.license, path=self.path)
