"""Pages for what lies beside docs/ (experiments, benchmarks), and links that work in the repository and on the site.

A link in a document is relative to its place in the repository, so that it works there. On the site it leads to the
same page; what has no page (source files, configuration) stays as text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
FOLDERS = ("experiments", "benchmarks")
SUFFIXES = (".md", ".png", ".csv")
NOTEBOOK = ("docs/quickstart.ipynb", "notebook.md")

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add documents, figures and tables of the folders beside docs/."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and "tables" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                files.append(
                    File(
                        name,
                        str(ROOT),
                        config.site_dir,
                        config.use_directory_urls,
                        inclusion=InclusionLevel.NOT_IN_NAV if name.endswith(".md") else InclusionLevel.INCLUDED,
                    )
                )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where their targets are on the site."""
    here = page.file.src_uri
    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(lambda match: site_link(match, here, files), part) for part in parts[::2]]
    return "".join(parts)


def site_link(match: re.Match[str], page: str, files: Files) -> str:
    """A link of a page as it is on the site; its text alone where the target is in the repository only."""
    image, text, address = match.groups()
    target, _, anchor = address.partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return match[0]
    source = page if page.startswith(FOLDERS) else f"docs/{page}"
    name = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / name).exists() and files.get_file_from_path(name.removeprefix("docs/")) is None:
        return match[0]  # broken: the build says so
    on_site = NOTEBOOK[1] if name == NOTEBOOK[0] else name.removeprefix("docs/")
    if files.get_file_from_path(on_site) is None:
        return text
    relative = posixpath.relpath(on_site, posixpath.dirname(page) or ".")
    return f"{image}[{text}]({relative}{'#' if anchor else ''}{anchor})"
