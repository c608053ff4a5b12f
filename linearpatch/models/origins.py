"""Where a model in memory comes from, for the card of what is made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Origin:
    """What is known of it.

    Attributes:
        name: What people call it.
        source: A hub id, or a folder.
        hub_id: Empty where it isn't known to be on the hub.
        license: Empty where it isn't known.
    """

    name: str
    source: str
    hub_id: str = ""
    license: str = ""


_ORIGINS: WeakKeyDictionary[PreTrainedModel, Origin] = WeakKeyDictionary()


def remember_origin(model: PreTrainedModel, origin: Origin) -> None:
    """Keep it as long as the model lives."""
    _ORIGINS[model] = origin


def origin_of(model: PreTrainedModel) -> Origin:
    """What was remembered, or what transformers knows: the hub id or the folder that it was loaded from."""
    if model in _ORIGINS:
        return _ORIGINS[model]
    path = str(getattr(model.config, "_name_or_path", "") or "")
    is_on_hub = HUB_ID.fullmatch(path) is not None and not Path(path).exists()
    return Origin(path or type(model).__name__, path, hub_id=path if is_on_hub else "")
