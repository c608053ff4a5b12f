"""The site loads nothing from other hosts: it works without a network, and nobody learns who reads it."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

LOADED = re.compile(r"<(?:script|img|link|iframe|source|video)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")


def on_post_build(config: MkDocsConfig) -> None:
    """Look through the pages.

    Raises:
        PluginError: one loads a remote file.
    """
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        remote = LOADED.findall(page.read_text(encoding="utf-8"))
        if remote:
            raise PluginError(f"{page} loads {', '.join(sorted(set(remote)))}. Put the file under docs/ instead.")
