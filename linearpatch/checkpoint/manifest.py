"""`pruning.json`: what a checkpoint is, where it comes from, and what its files must be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from linearpatch.errors import StorageError
from linearpatch.models.edit import PlacedOperator, Site
from linearpatch.models.fingerprint import sha256_of
from linearpatch.models.modeling_linearpatch import OPERATORS, Operator
from linearpatch.models.places import place_from
from linearpatch.models.units import Interface, Unit, unit_from, whole_layers
from linearpatch.storage.cache import canonical
from linearpatch.storage.files import write_atomically

SCHEMA_VERSION = 2
FILE_NAME = "pruning.json"
PATCH_FILE = "patch.safetensors"
WEIGHTS = "weight."  # how the names of changed weights begin in it
LORA_FOLDER = "lora"
LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")
GGUF_FILE = "model.gguf"
CARD_NAME = "README.md"  # people may edit it, …
MERGEKIT_FILE = "mergekit.yml"  # … and this, which loading doesn't read
NOT_HASHED = (FILE_NAME, CARD_NAME, MERGEKIT_FILE)
ADDED = ("weights", "lora", "removed", "num_new_layers")  # since the schema version, so that a manifest may lack them
CONFIG_FILE = "config.json"
INDEX_SUFFIX = ".safetensors.index.json"
# What transformers may read from a folder: configurations, weights, code, templates, vocabularies.
READ_SUFFIXES = (
    ".json", ".safetensors", ".py", ".jinja", ".model", ".bin", ".pt", ".pth", ".h5", ".gguf", ".tiktoken", ".vocab",
    ".bpe", ".spm",
)  # fmt: skip
READ_NAMES = ("merges.txt", "vocab.txt")


@dataclass(frozen=True)
class Base:
    """The dense model that lost its layers.

    Attributes:
        name: Its name in tables.
        source: Where it was loaded from: hub id, folder or package.
        hub_id: What a model card names as the base; empty where it isn't on the hub.
        fingerprint: Identity of its files: a hub commit, or a hash.
        weights_hash: Identity of its weights in memory (`models.fingerprint.weights_hash`).
        model_type: Its family.
        num_layers: Number of its layers.
        hidden_size: Width of its stream.
        dtype: Of its weights when it was pruned.
        license: Its licence; empty where it isn't known.
    """

    name: str
    source: str
    fingerprint: str
    weights_hash: str
    model_type: str
    num_layers: int
    hidden_size: int
    dtype: str
    hub_id: str = ""
    license: str = ""


@dataclass(frozen=True)
class PatchEntry:
    """One operator: what it stands for, where it acts, and its spec.

    Attributes:
        interface: `[start, end]`.
        reader: Dense index of the layer that reads what it repairs.
        place: As `Place.spec` writes it.
        operator: Its name and its spec, as `operator_from` reads them.
    """

    interface: Sequence[float]
    reader: int
    place: Mapping[str, Any]
    operator: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.operator.get("operator") not in OPERATORS:
            raise ValueError(f"operator {self.operator.get('operator')!r}; known: {', '.join(sorted(OPERATORS))}")
        place_from(self.place)
        start, end = self.interface
        if not 0 <= start < end:
            raise ValueError(f"interface {list(self.interface)}")

    @classmethod
    def of(cls, placed: PlacedOperator) -> PatchEntry:
        """The entry of an operator that has a spec."""
        assert isinstance(placed.module, Operator)
        interface = placed.site.interface
        operator = {"operator": placed.module.name, **placed.module.spec()}
        return cls([interface.start, interface.end], placed.site.reader, placed.place.spec(), operator)

    @property
    def site(self) -> Site:
        """Where it acts."""
        return Site(Interface(*self.interface), self.reader, place_from(self.place))


@dataclass(frozen=True)
class Manifest:
    """The content of `pruning.json`.

    Attributes:
        format: `plain`, `custom`, `adapter`, `gguf` or `nemotron_nas`.
        base: The dense model.
        removed_layers: Its layers that are removed as a whole, in the order of removal.
        patches: What bridges the interfaces; in a `plain` checkpoint they are folded into the weights, in
            a `gguf` or `nemotron_nas` one into weights, or they are layers of their own.
        weights: Changed weights that an adapter holds, as `describe_weights` writes them; a whole checkpoint has them
            among its own.
        lora: Whether a LoRA adapter, in the folder `LORA_FOLDER`, belongs to the model.
        removed: Where sublayers were removed, too, all that was, in the order of removal: layers by their indices,
            sublayers by name, such as `3.attention`.
        num_new_layers: How many patches are layers of their own, in formats that have layers of several kinds.
        files: SHA-256 of every file that loading reads, by name.
        provenance: Which run made it: run id, command, configuration, package versions.
        schema_version: Of this file.
    """

    format: str
    base: Base
    removed_layers: tuple[int, ...]
    patches: tuple[PatchEntry, ...]
    weights: tuple[Mapping[str, Any], ...] = ()
    lora: bool = False
    removed: tuple[int | str, ...] = ()
    num_new_layers: int = 0
    files: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.format not in ("plain", "custom", "adapter", "gguf", "nemotron_nas"):
            raise ValueError(f"format {self.format!r}")
        layers = set(self.removed_layers)
        if len(layers) != len(self.removed_layers) or not layers <= set(range(self.base.num_layers)):
            raise ValueError(f"removed_layers {list(self.removed_layers)} of {self.base.num_layers} layers")
        if self.removed and whole_layers(self.units) != self.removed_layers:
            raise ValueError(f"removed_layers {list(self.removed_layers)}, and removed {list(self.removed)}")

    @property
    def units(self) -> tuple[Unit, ...]:
        """All that is removed, in the order of removal."""
        return tuple(map(unit_from, self.removed or self.removed_layers))

    @property
    def num_layers(self) -> int:
        """Number of layers that are left."""
        return self.base.num_layers - len(self.removed_layers)

    @property
    def text(self) -> str:
        """Its content as JSON, with a checksum."""
        content = json.loads(json.dumps(asdict(self)))
        return json.dumps(content | {"sha256": _digest(content)}, indent=2)

    def write(self, folder: Path) -> None:
        """Write it into a folder that holds all the files it names."""
        write_atomically(folder / FILE_NAME, f"{self.text}\n".encode())


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest and make sure that every file is there and as it was written.

    Args:
        folder: The checkpoint.

    Raises:
        StorageError: there is none, it was written by a newer version, or a file is missing or changed.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise StorageError(
            f"{folder} holds no {FILE_NAME}: it isn't a checkpoint of this package, or writing it was interrupted. "
            "Give the folder that a run with save_model=true wrote (OUTPUT_DIR/model)."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = int(content["schema_version"])
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise StorageError(f"{path} can't be read: {error!r}. Write the checkpoint again.") from error
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"{path} has schema version {version}; this version of linearpatch reads {SCHEMA_VERSION}. "
            "Install a newer linearpatch, or load the folder with transformers alone."
        )
    if version < SCHEMA_VERSION:
        raise StorageError(
            f"{path} has schema version {version}, which this version of linearpatch doesn't read any more (it reads "
            f"{SCHEMA_VERSION}). Run the command in provenance.command again, or load a whole checkpoint with "
            "transformers alone."
        )
    if content.pop("sha256", None) != _digest(content):
        raise StorageError(
            f"{folder} is damaged: {FILE_NAME} doesn't match its own checksum. Copy the folder, or write it, again."
        )
    try:
        manifest = Manifest(
            **{
                **{name: content[name] for name in (entry.name for entry in fields(Manifest)) if name not in ADDED},
                **{name: content[name] for name in ADDED if name in content},
                "base": Base(**content["base"]),
                "removed_layers": tuple(content["removed_layers"]),
                "removed": tuple(content.get("removed", ())),
                "patches": tuple(PatchEntry(**entry) for entry in content["patches"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path} lacks what a manifest holds: {error!r}. Write the checkpoint again.") from error
    _check_files(folder, manifest)
    return manifest


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder that loading reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_HASHED)
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def foreign_files(folder: Path) -> list[str]:
    """Files in a checkpoint's folder that it wasn't written with, such as those of a user."""
    listed = (_content(folder) or {}).get("files")
    listed = listed if isinstance(listed, dict) else {}
    files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [name for name in files if name not in listed and name not in NOT_HASHED]


def format_of(folder: Path) -> str | None:
    """The format of the checkpoint in a folder; None where there is none, or none that can be read."""
    content = _content(folder)
    return str(content["format"]) if content and "format" in content else None


def parent_of(source: str) -> dict[str, Any] | None:
    """The manifest of the dense model, without its files, where that was a readable checkpoint of this package."""
    content = _content(Path(source).expanduser()) if source else None
    return content and {name: value for name, value in content.items() if name not in ("files", "sha256")}


def _content(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint's manifest says, unchecked; None where there is none, or none that can be read."""
    try:
        content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Make sure that all that loading reads is listed, there, and as it was written.

    Files are hashed each time: reading them is what loading does anyway, and no date of a file can be trusted.
    """
    outside = [name for name in manifest.files if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise StorageError(f"{folder / FILE_NAME} names files outside its folder: {', '.join(outside)}. Don't use it.")
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        raise StorageError(
            f"{folder} is incomplete: {', '.join(missing)} missing. Copy the whole folder again, or write it again."
        )
    changed = [name for name, digest in manifest.files.items() if sha256_of(folder / name) != digest]
    if changed:
        raise StorageError(
            f"{folder} is damaged: {', '.join(changed)} changed since it was written ({FILE_NAME} has the checksums). "
            "Copy the folder again, or write it again."
        )
    unlisted = sorted({*_files_to_read(folder), *_files_needed(folder, manifest)} - set(manifest.files))
    if unlisted:
        raise StorageError(
            f"{folder}: {FILE_NAME} doesn't list {', '.join(unlisted)}, which loading would read, so its content can't "
            "be verified. Move files that you added out of the folder, or copy the checkpoint again."
        )


def _files_needed(folder: Path, manifest: Manifest) -> set[str]:
    """Names without which a checkpoint of its format can't be loaded."""
    if manifest.format == "adapter":
        return {PATCH_FILE}
    if manifest.format == "gguf":
        return {GGUF_FILE}
    needed = {CONFIG_FILE, *(f"{LORA_FOLDER}/{name}" for name in LORA_FILES if manifest.lora)}
    indices = [name for name in manifest.files if name.endswith(INDEX_SUFFIX)]
    if not indices:
        return needed | {"model.safetensors"}
    try:
        for name in indices:
            shards = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()
            if not all(isinstance(shard, str) for shard in shards):
                raise ValueError("weight_map must map to file names")
            needed |= set(shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{folder / name} can't be read: {error!r}. Write the checkpoint again.") from error
    return needed


def _files_to_read(folder: Path) -> set[str]:
    """Names of the files that transformers may read; hidden ones (of git, of the hub's client) it doesn't."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {
        name.as_posix()
        for name in names
        if not any(part.startswith(".") for part in name.parts)
        and (name.suffix.lower() in READ_SUFFIXES or name.name in READ_NAMES)
        and name.as_posix() != FILE_NAME
    }
