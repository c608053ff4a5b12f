"""Models whose files transformers doesn't load as they are: converted once, then loaded like any folder.

A conversion writes a plain checkpoint of a family that transformers has into the cache, and everything else (loading,
pruning, patching, saving, serving) sees only that checkpoint. The folder is named after what was converted, so that
other files give another folder, and it appears whole or not at all.

A new family is one file beside this one, with a class derived from `ConvertedModel` (or, where the files are a
repository on the hub or a folder, from `ConvertedRepository` in `converted_repository.py`), one YAML and one test.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearpatch.models.hub import HubModel
from linearpatch.models.model import LoadedModel, Model
from linearpatch.storage.cache_folder import MARKER, MARKER_TEXT, MODELS, mark_cache
from linearpatch.storage.files import make_folder, replacing_folder
from linearpatch.storage.leases import leased


@dataclass(frozen=True)
class ConvertedModel(Model):
    """A model that is converted into a plain checkpoint before it is loaded.

    A subclass says what the checkpoint is called (`checkpoint_name`), how it is written (`write_checkpoint`), and what
    its configuration will be (`config`), which is asked for before anything is converted.
    """

    @abstractmethod
    def checkpoint_name(self, cache_dir: Path) -> str:
        """Name of the converted checkpoint's folder: other files, or another conversion, must give another name.

        Raises:
            ModelError: there is nothing to convert.
        """

    @abstractmethod
    def write_checkpoint(self, folder: Path, cache_dir: Path) -> None:
        """Write configuration, safetensors and tokenizer into an empty folder.

        It must compute exactly what the original does, and never run code that comes with the original.

        Raises:
            ModelError: the files can't be converted.
        """

    def tokenizer(self, cache_dir: Path) -> Any | None:
        """That of the converted checkpoint, once there is one."""
        folder = cache_dir / MODELS / self.checkpoint_name(cache_dir)
        return self._as_folder(folder).tokenizer(cache_dir) if folder.is_dir() else None

    def load(self, cache_dir: Path) -> LoadedModel:
        """Load the converted checkpoint, converting it first where it isn't in the cache."""
        return self._as_folder(self.checkpoint(cache_dir)).load(cache_dir)

    def checkpoint(self, cache_dir: Path) -> Path:
        """Folder of the converted checkpoint.

        Raises:
            ModelError: there is nothing to convert, or it can't be converted.
            StorageError: the checkpoint can't be written.
        """
        folder = cache_dir / MODELS / self.checkpoint_name(cache_dir)
        if not folder.is_dir():
            mark_cache(cache_dir)
            make_folder(folder.parent)
            with leased(folder.with_suffix(".lease"), f"the conversion of {self.label}"):
                if not folder.is_dir():
                    with replacing_folder(folder) as temporary:
                        self.write_checkpoint(temporary, cache_dir)
                        # so that `linearpatch cache rm` may remove it
                        (temporary / MARKER).write_text(MARKER_TEXT, encoding="utf-8")
        return folder

    def _as_folder(self, folder: Path) -> HubModel:
        shared = {
            name: getattr(self, name) for name in ("name", "dtype", "device", "device_map", "attn_implementation")
        }
        return HubModel(**shared, path=str(folder))
