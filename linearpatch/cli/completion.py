"""What the shell may complete: groups, their choices, settings. argcomplete asks."""

from __future__ import annotations

from typing import Any

import yaml

from linearpatch.choices import CONF_DIR, PRESET_GROUPS, choices
from linearpatch.registry import GROUPS


def complete_group(**_: Any) -> list[str]:
    """Groups, for `linearpatch list`."""
    return [*GROUPS, *PRESET_GROUPS]


def complete_override(prefix: str, **_: Any) -> list[str]:
    """How an override may continue.

    >>> complete_override("pruner=sl")
    ['pruner=sleb']
    >>> complete_override("eval=[ppl,smo")
    ['eval=[ppl,smoke']
    """
    key, equals, value = prefix.partition("=")
    if not equals:
        words = [f"{name}=" for name in (*complete_group(), *_settings())]
    else:
        before = value[: max(value.rfind(","), value.rfind("[")) + 1]
        words = [f"{key}={before}{name}" for name in _values(key)]
    return [word for word in words if word.startswith(prefix)]


def _values(key: str) -> list[str]:
    group = key.lstrip("+").partition("@")[0]
    if group in complete_group():
        return list(choices(group))
    return ["true", "false"] if isinstance(_settings().get(key), bool) else []


def _settings() -> dict[str, Any]:
    """The experiment's own settings with their defaults."""
    content = yaml.safe_load((CONF_DIR / "config.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if not isinstance(value, dict) and key != "defaults"}
