"""The class of a patched model: a family's own class and the patches, loadable wherever transformers is.

A stock class would drop the patches of a checkpoint without a word. A patched model therefore has a class
and a `model_type` of its own, and its checkpoint brings their code: `modeling_linearpatch.py` followed by
two lines for its family.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from linearpatch.errors import ModelError, StorageError
from linearpatch.models import modeling_linearpatch
from linearpatch.models.auto import is_vision_language
from linearpatch.models.modeling_linearpatch import OPERATORS, PATCH_PREFIX, LinearPatchMixin, Operator

MODULE = "modeling_linearpatch"
CONFIG_CLASS = "LinearPatchConfig"
MODEL_CLASS = "LinearPatchForCausalLM"
MODEL_TYPE_PREFIX = "linearpatch_"

FAMILY = '''

class {config}({base_config}):
    """The configuration of the family, and the patches."""

    model_type = "{model_type}"


class {model}(LinearPatchMixin, {base_model}):
    """The model of the family, and the patches."""

    config_class = {config}
'''


@cache
def patched_config_class(base: Any) -> Any:
    """The configuration class of a family's patched models."""
    members = {"model_type": MODEL_TYPE_PREFIX + base.model_type, "__module__": __name__}
    return type(CONFIG_CLASS, (base,), members)


@cache
def patched_model_class(base_model: Any, base_config: Any) -> Any:
    """The model class of a family's patched models; it saves its code beside the weights."""

    class Patched(LinearPatchMixin, base_model):  # type: ignore[misc]
        config_class = patched_config_class(base_config)
        family = (base_config, base_model)

        def save_pretrained(self, save_directory: str | Path, **settings: Any) -> None:
            check_storable(_operators_in(self))
            if settings.get("push_to_hub"):
                raise StorageError("push_to_hub isn't supported here. Save first, then: hf upload REPOSITORY FOLDER")
            source = modeling_source(*self.family)
            # Weights keep their names in memory: a family's stock format has none for patches.
            super().save_pretrained(save_directory, **{"save_original_format": False, **settings})
            (Path(save_directory) / f"{MODULE}.py").write_text(source, encoding="utf-8")

    Patched.__name__ = Patched.__qualname__ = MODEL_CLASS
    return Patched


def _operators_in(model: nn.Module) -> Iterator[nn.Module]:
    """The operators that are attached to a model."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2].startswith(PATCH_PREFIX):
            yield module


def become_patched(
    model: PreTrainedModel,
    entries: Sequence[dict[str, Any]],
    sizes: Mapping[str, Sequence[int]] | None = None,
    removed: Mapping[str, Any] | None = None,
) -> None:
    """Give a model that no configuration of its family describes the class that says what is different.

    Args:
        model: A view of its own, with patches attached as `entries` describe.
        entries: What `LinearPatchMixin` needs to build them again, from `Place.add_to`.
        sizes: Outputs and inputs of the matrices that are smaller than the configuration says, by name.
        removed: Which modules of sublayers are removed, as `remove_sublayers` takes it.
    """
    base_model: Any = type(model)
    base_config: Any = type(model.config)
    model.__class__ = patched_model_class(base_model, base_config)
    model.config.linear_patches = list(entries)
    if sizes:
        model.config.linear_sizes = {name: list(size) for name, size in sizes.items()}
    if removed:
        model.config.linear_removed = dict(removed)
    loaders = ["AutoModelForCausalLM"]
    if is_vision_language(model.config):
        loaders.append("AutoModelForImageTextToText")
    model.config.__class__ = patched_config_class(base_config)
    model.config.auto_map = {"AutoConfig": f"{MODULE}.{CONFIG_CLASS}"} | dict.fromkeys(
        loaders, f"{MODULE}.{MODEL_CLASS}"
    )


def check_storable(operators: Iterable[nn.Module]) -> None:
    """Reject operators that a checkpoint can't hold.

    Raises:
        StorageError: names the operator.
    """
    for operator in operators:
        if not isinstance(operator, Operator) or OPERATORS.get(operator.name) is not type(operator):
            raise StorageError(
                f"A checkpoint can't hold the operator {type(operator).__name__}: it isn't an Operator with a spec. "
                f"Allowed: {', '.join(sorted(cls.__name__ for cls in OPERATORS.values()))} of "
                "linearpatch.models.modeling_linearpatch, or a subclass of Operator beside them."
            )


def modeling_source(base_config: type, base_model: type) -> str:
    """The code that loads a family's patched models without this package: one file of Python.

    Raises:
        ModelError: the family's own code isn't part of transformers.
    """
    for base in (base_config, base_model):
        if getattr(transformers, base.__name__, None) is not base:
            raise ModelError(
                f"{base.__module__}.{base.__name__} isn't part of transformers, so no file beside the weights can "
                "import it. Use save_format=adapter."
            )
    source = inspect.getsource(modeling_linearpatch)
    last_import = "from torch.nn import functional\n"
    family_import = f"from transformers import {base_config.__name__}, {base_model.__name__}\n"
    family = FAMILY.format(
        config=CONFIG_CLASS,
        base_config=base_config.__name__,
        model_type=patched_config_class(base_config).model_type,
        model=MODEL_CLASS,
        base_model=base_model.__name__,
    )
    return source.replace(last_import, last_import + family_import) + family
