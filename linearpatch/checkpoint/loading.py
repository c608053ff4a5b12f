"""From a folder to a model: a whole checkpoint by itself, an adapter on its dense model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
)

from linearpatch.checkpoint.lora import merge_lora
from linearpatch.checkpoint.manifest import (
    FILE_NAME,
    GGUF_FILE,
    LORA_FOLDER,
    PATCH_FILE,
    WEIGHTS,
    Manifest,
    read_manifest,
)
from linearpatch.errors import ModelError, StorageError, looked_in
from linearpatch.models.auto import auto_class, model_class
from linearpatch.models.decoder import decoder_of, text_config
from linearpatch.models.edit import Edit, PlacedOperator
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.loaded_weights import check_weights
from linearpatch.models.modeling_linearpatch import operator_from
from linearpatch.models.patched import MODEL_TYPE_PREFIX, patched_config_class, patched_model_class
from linearpatch.models.quantised import keep_order_of_codes
from linearpatch.models.weight_changes import tensors_of, unfilled_weights, weights_from


def load(folder: str | Path, **settings: Any) -> PreTrainedModel:
    """Load a pruned, patched model without running code from its folder.

    Args:
        folder: A checkpoint, or the folder of the run that wrote one.
        settings: Passed on to `from_pretrained`, such as `dtype`, `device_map` or `attn_implementation`.

    Raises:
        StorageError: the folder is incomplete, damaged, of a newer version, or an adapter.
        ModelError: transformers can't load it, or its weights aren't those of the model.
    """
    folder = checkpoint_folder(folder)
    manifest = read_manifest(folder)
    if manifest.format == "adapter":
        raise StorageError(
            f"{folder} is an adapter: it holds what was changed, not a whole model. Load {manifest.base.name} "
            f"({manifest.base.source or 'the dense model'}) and call linearpatch.apply(model, {str(folder)!r})."
        )
    _reject_served(folder, manifest)
    return load_whole(folder, manifest, **settings)


def _reject_served(folder: Path, manifest: Manifest) -> None:
    """Reject what other programs load."""
    program = {
        "gguf": f"a GGUF file, which llama.cpp loads: llama-server -m {folder / GGUF_FILE}",
        "nemotron_nas": f"a nemotron-nas model, which vLLM loads: vllm serve {folder} --trust-remote-code",
    }
    if manifest.format in program:
        raise StorageError(
            f"{folder} holds {program[manifest.format]}. This package loads the same model from save_format=custom: "
            "repeat the run with it in another output_dir, which takes the fit from the cache."
        )


def load_whole(folder: Path, manifest: Manifest, **settings: Any) -> PreTrainedModel:
    """Load a checkpoint whose manifest was read already.

    Raises:
        StorageError: a patch is missing or has another shape.
        ModelError: transformers can't load it, or its weights aren't those of the model.
    """
    settings |= {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    settings |= {"ignore_mismatched_sizes": True}  # they are rejected by name below
    try:
        base_config: Any = _config_class(manifest, folder)
        if manifest.format == "plain":
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            _check_config(config, manifest, folder)
            model, info = auto_class(config).from_pretrained(folder, **settings)
        else:
            config = patched_config_class(base_config).from_pretrained(folder)
            _check_config(config, manifest, folder)
            _check_shapes(folder, _expected_shapes(config.linear_patches, manifest.base.hidden_size))
            cls = patched_model_class(model_class(base_config), base_config)
            model, info = cls.from_pretrained(folder, config=config, **settings)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        made_with = (
            manifest.provenance.get("environment", {}).get("packages", {}).get("transformers", "another version")
        )
        raise ModelError(
            f"{folder} is intact, but transformers can't load it: {error} It was written with transformers {made_with}."
        ) from error
    check_weights(model, info, str(folder), strict=True)
    keep_order_of_codes(model)
    loaded: PreTrainedModel = model
    return merge_lora(loaded, folder / LORA_FOLDER) if manifest.lora else loaded


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a checkpoint.

    No code of the folder is run. transformers rejects a configuration with custom code even for a tokenizer that has
    none; it is given the family's stock configuration.

    Args:
        folder: A checkpoint, or the folder of the run that wrote one.

    Raises:
        StorageError: the folder is incomplete, damaged, of a newer version, or an adapter.
        ModelError: the tokenizer needs code that transformers doesn't have.
    """
    folder = checkpoint_folder(folder)
    manifest = read_manifest(folder)
    if manifest.format == "adapter":
        raise StorageError(f"{folder} is an adapter; the tokenizer is that of {manifest.base.name}.")
    _reject_served(folder, manifest)
    config = _config_class(manifest, folder)()
    try:
        return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"The tokenizer of {folder} can't be loaded without running code: {error}") from error


def apply(base_model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Remove layers from a dense model and put an adapter's patches in their place.

    Args:
        base_model: The dense model the adapter was made from; it does not change.
        folder: The adapter, or the folder of the run that wrote it.

    Returns:
        A view that shares the weights of `base_model`.

    Raises:
        StorageError: the folder is incomplete, damaged, of a newer version, or no adapter.
        ModelError: `base_model` is another model.
    """
    folder = checkpoint_folder(folder)
    manifest = read_manifest(folder)
    if manifest.format != "adapter":
        raise StorageError(f"{folder} is a whole model, not an adapter. Call linearpatch.load({str(folder)!r}).")
    expected = {
        f"{index}.{name}": shape
        for index, entry in enumerate(manifest.patches)
        for name, shape in _shapes(entry.operator, manifest.base.hidden_size).items()
    }
    with torch.device("meta"):
        changed = tensors_of(unfilled_weights(manifest.weights), WEIGHTS)
    _check_shapes(folder, expected | {name: tuple(values.shape) for name, values in changed.items()})
    dense = decoder_of(base_model)
    _check_base(base_model, manifest, folder)
    return read_edit(folder, manifest).view(dense)


def read_edit(folder: Path, manifest: Manifest) -> Edit:
    """The edit that an adapter holds."""
    tensors = load_file(folder / PATCH_FILE)
    operators = []
    for index, entry in enumerate(manifest.patches):
        operator = operator_from(entry.operator)
        operator.load_state_dict({name: tensors[f"{index}.{name}"] for name in operator.state_dict()})
        operators.append(PlacedOperator(entry.site, operator))
    weights = weights_from(manifest.weights, tensors, WEIGHTS)
    return Edit.without(manifest.units).with_operators(operators).with_weights(weights)


def checkpoint_folder(folder: str | Path) -> Path:
    """The checkpoint itself, given it or the folder of its run.

    Raises:
        StorageError: there is no such folder.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise StorageError(
            f"{folder} is not a folder{looked_in(folder)}. A checkpoint on the hub is fetched first: "
            "hf download REPOSITORY --local-dir FOLDER"
        )
    inside = folder / "model"
    return inside if not (folder / FILE_NAME).exists() and (inside / FILE_NAME).exists() else folder


def _config_class(manifest: Manifest, folder: Path) -> Any:
    if manifest.base.model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{folder} is a model of the family {manifest.base.model_type!r}, which transformers "
            f"{transformers.__version__} doesn't have. Install a newer transformers."
        )
    return CONFIG_MAPPING[manifest.base.model_type]


def _check_config(config: Any, manifest: Manifest, folder: Path) -> None:
    """Compare the configuration with what the manifest says of the model, before weights are made room for."""
    prefix = MODEL_TYPE_PREFIX if manifest.format == "custom" else ""
    text = text_config(config)
    facts = {
        "model_type": (config.model_type, prefix + manifest.base.model_type),
        "num_hidden_layers": (getattr(text, "num_hidden_layers", None), manifest.num_layers),
        "hidden_size": (getattr(text, "hidden_size", None), manifest.base.hidden_size),
    }
    for name, (value, expected) in facts.items():
        if value != expected:
            raise ModelError(
                f"{folder}: config.json has {name} {value!r}, but by {FILE_NAME} it is {expected!r} ("
                f"{manifest.base.num_layers} layers of {manifest.base.name} without {list(manifest.removed_layers)}). "
                "One of the two files was changed after saving. Copy the checkpoint again."
            )


def _check_base(model: PreTrainedModel, manifest: Manifest, folder: Path) -> None:
    base = manifest.base
    found = weights_hash(model)
    if found != base.weights_hash:
        layers = decoder_of(model).num_layers
        raise ModelError(
            f"{folder} was made from {base.name} ({base.source or 'unnamed'}; {base.model_type}, {base.num_layers} "
            f"layers, weights {base.weights_hash}), but this is a different model: {model.config.model_type}, {layers} "
            f"layers, weights {found}. Load {base.name} as it was, unchanged and not quantised."
        )


def _expected_shapes(entries: Sequence[Mapping[str, Any]], hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the patches in a whole checkpoint, by what its configuration says of them."""
    seen: Counter[str] = Counter()
    expected: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        path = f"{entry['module']}.linear_patch_{seen[entry['module']]}"
        seen[entry["module"]] += 1
        shapes = _shapes(entry, hidden_size)
        expected |= {f"{path}.{name}": shape for name, shape in shapes.items()}
    return expected


def _shapes(spec: Mapping[str, Any], hidden_size: int) -> dict[str, tuple[int, ...]]:
    size = spec["size"]
    if size != hidden_size and (spec["operator"], size) != ("channel_scale", 1):
        raise StorageError(f"A patch of size {size} doesn't fit a stream of {hidden_size}. Write the checkpoint again.")
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in operator_from(spec).state_dict().items()}


def _check_shapes(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare tensors by the headers of the files; nothing is loaded."""
    stored: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as content:
                stored |= {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise StorageError(
                f"{file} can't be read: {error}. Copy it again, or write the checkpoint again."
            ) from error
    for name, shape in expected.items():
        if stored.get(name) != shape:
            found = f"has the shape {list(stored[name])}" if name in stored else "is missing"
            raise StorageError(
                f"{folder}: the patch {name} {found}; the stream needs {list(shape)}. Write the checkpoint again."
            )
