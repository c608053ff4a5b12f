"""Models from the Hugging Face hub or a local folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from linearpatch.errors import ConfigError, ModelError, looked_in, require_path
from linearpatch.models.auto import auto_class
from linearpatch.models.fingerprint import fingerprint_folder
from linearpatch.models.layer_config import already_patched
from linearpatch.models.loaded_weights import check_weights
from linearpatch.models.model import NO_SDPA, LoadedModel, Model, ready
from linearpatch.models.vision import processor_files
from linearpatch.registry import component, components

CONFIG = "config.json"
CARD = "README.md"
RUST_PANIC = "PanicException"  # of the tokenizers library; no `Exception`


@component("model", "hub")
@dataclass(frozen=True)
class HubModel(Model):
    """A causal language model by hub id or local folder.

    Attributes:
        path: Hub id such as `Qwen/Qwen3-0.6B`, or a folder.
        revision: Commit, tag or branch of the hub; pin it to make a run repeatable.
        trust_remote_code: Run the repository's own code. Off: only models that transformers knows.
    """

    path: str = ""
    revision: str | None = None
    trust_remote_code: bool = field(default=False, metadata={"identity": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_path("model.path", self.path)

    @property
    def label(self) -> str:
        """The name, or the last part of the path."""
        return self.name or self.path.rstrip("/").rpartition("/")[2] or "hub"

    @property
    def origin(self) -> str:
        """The hub id or folder."""
        return self._location

    @property
    def hub_id(self) -> str:
        """The path, unless it is a folder."""
        return self.source or ("" if Path(self._location).is_dir() else self.path)

    @property
    def known_license(self) -> str:
        """The licence that was set, or the one that the model's own card names."""
        folder = Path(self._location)
        card = folder / CARD
        if self.license or (folder.is_dir() and not card.is_file()):
            return self.license
        try:
            return str(ModelCard.load(card if card.is_file() else self.path).data.license or "")
        except Exception:  # no card, no network, no access: nothing is known, and nothing depends on it
            return ""

    @property
    def waiting(self) -> HubModel:
        """The same with its weights on disk, where a process reads them when it needs them."""
        return replace(self, device="cpu", device_map={"": "disk"})

    def config(self, cache_dir: Path) -> Any:
        """Read the configuration alone."""
        self._check_path()
        try:
            return AutoConfig.from_pretrained(self._location, **self._source)
        except Exception as error:
            raise self._failure(error) from error

    def tokenizer(self, cache_dir: Path) -> Any | None:
        """From a folder or the hub's cache on this machine."""
        self._check_path()
        try:
            return AutoTokenizer.from_pretrained(self._location, local_files_only=True, **self._source)
        except Exception:  # loading the model says what is wrong with it
            return None

    def load(self, cache_dir: Path) -> LoadedModel:
        """Load weights and tokenizer from safetensors."""
        auto = auto_class(self.config(cache_dir))
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._location, **self._source)
            check_tokenizer(tokenizer, self.path)
            model, info = auto.from_pretrained(
                self._location,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are rejected by name below
                dtype=self.torch_dtype,
                attn_implementation=self.attn_implementation,
                use_safetensors=True,
                **self._source,
                **self.placement,
            )
        except BaseException as error:
            if isinstance(error, ModelError) or not (
                isinstance(error, Exception) or type(error).__name__ == RUST_PANIC
            ):
                raise
            raise self._failure(error) from error
        check_weights(model, info, f"model.path={self.path}")
        commit = getattr(model.config, "_commit_hash", None)
        fingerprint = commit or fingerprint_folder(Path(self._location), cache_dir)
        processor = processor_files(model.config, self._location, self.revision)
        return ready(model, tokenizer, fingerprint, processor)

    @property
    def _location(self) -> str:
        folder = Path(self.path).expanduser()
        inside = folder / "model"  # of a run that saved its model
        if not (folder / CONFIG).is_file() and (inside / CONFIG).is_file():
            folder = inside
        return str(folder) if folder.is_dir() else self.path

    @property
    def _source(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def _check_path(self) -> None:
        if not self.path:
            raise ConfigError("model=hub needs model.path=ID or model.path=FOLDER, such as Qwen/Qwen3-0.6B.")
        if self.path.startswith((".", "/", "~")) and not Path(self.path).expanduser().is_dir():
            raise ModelError(
                f"model.path={self.path} is not a folder{looked_in(self.path)}. Name one with config.json and weights, "
                "or a model's id on the hub, such as Qwen/Qwen3-0.6B."
            )
        if (Path(self._location) / "modeling_linearpatch.py").is_file():
            raise already_patched(self._location)

    def _failure(self, error: BaseException) -> ModelError:
        if NO_SDPA in str(error):
            return ModelError(
                f"model {self.name or self.path} has no sdpa attention in this version of transformers. Use "
                "model.attn_implementation=eager."
            )
        if (family := self._source_family()) is not None:
            return ModelError(
                f"{self.path} is a model of type {family}, which transformers doesn't load without the repository's "
                f"own code. linearpatch converts it exactly: use model={family} model.path={self.path}."
            )
        return ModelError(
            f"model {self.name or self.path}: {self.path} can't be loaded as a causal language model: "
            f"{' '.join(str(error).split())[:400] or type(error).__name__} Check the id and your access to it (a "
            "folder needs config.json, *.safetensors and the tokenizer's files), or use model=smollm2_135m, which "
            "needs no hub."
        )

    def _source_family(self) -> str | None:
        """The type of the model, where it is one that a component of its own converts (`ConvertedRepository`)."""
        try:
            content, _ = PreTrainedConfig.get_config_dict(self._location, revision=self.revision)
        except Exception:  # what can't be read is named by the error that is being made
            return None
        families = {getattr(cls, "family", None) for cls in components("model").values()}
        family = content.get("model_type")
        return family if family in families else None


def check_tokenizer(tokenizer: Any, path: str) -> None:
    """Reject a tokenizer that loads and then makes no numbers of a text.

    Args:
        tokenizer: As it was loaded …
        path: … from here.

    Raises:
        ModelError: it doesn't.
    """
    ids = tokenizer("The sea is deep, and 3 fish swim in it.", add_special_tokens=False).input_ids
    if not ids or not all(isinstance(token, int) and token >= 0 for token in ids):
        raise ModelError(
            f"The tokenizer of {path} makes {ids[:5] or 'no tokens'} of a sentence: its files are missing there or "
            "don't belong to it. Put the model's tokenizer.json and tokenizer_config.json there (in Python: "
            "tokenizer.save_pretrained)."
        )
