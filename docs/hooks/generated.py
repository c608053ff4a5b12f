"""Pages that are written by the build: the configuration reference, the notebook, the classes of the Python API."""

from __future__ import annotations

from pathlib import Path

from api_page import with_classes
from configuration_page import configuration_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebook_page import notebook_page

DOCS = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "configuration.md", content=configuration_page()))
    files.append(File.generated(config, "notebook.md", content=notebook_page(DOCS / "quickstart.ipynb")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the classes where a page asks for them."""
    return with_classes(markdown)
