"""What the pages of the site hold: every public name, method and setting, and links that lead somewhere."""

import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from api_page import with_classes
from configuration_page import configuration_page, sections
from notebook_page import notebook_page

import linearpatch
from linearpatch.choices import CONF_DIR, PRESET_GROUPS, choices
from linearpatch.registry import GROUPS, components

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = {
    DOCS / "configuration.md": configuration_page,
    DOCS / "notebook.md": lambda: notebook_page(DOCS / "quickstart.ipynb"),
}
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted(ROOT.glob("experiments/**/README.md")),
    *sorted(ROOT.glob("examples/**/README.md")),
    *GENERATED,
]


@cache
def text_of(document):
    return GENERATED[document]() if document in GENERATED else document.read_text()


def documented():
    """What the API page documents, by its full name."""
    return re.findall(r"^::: ([\w.]+)$", with_classes(text_of(DOCS / "api.md")), re.MULTILINE)


SPACES = [name for name in linearpatch.__all__ if inspect.ismodule(getattr(linearpatch, name))]


@pytest.mark.parametrize("name", sorted(set(linearpatch.__all__) - set(SPACES)))
def test_every_public_name_is_documented(name):
    assert inspect.getdoc(getattr(linearpatch, name)), f"linearpatch.{name} has no docstring"
    assert f"linearpatch.{name}" in documented(), f"docs/api.md doesn't show linearpatch.{name}"


@pytest.mark.parametrize("group", ["pruner", "patch", "distill"])
def test_every_class_of_a_namespace_is_documented(group):
    for name, cls in components(group).items():
        if cls.__module__.startswith("linearpatch."):
            assert inspect.getdoc(cls), f"{group}={name} has no docstring"
            assert f"{cls.__module__}.{cls.__qualname__}" in documented()


def test_every_namespace_of_classes_is_on_the_api_page():
    assert SPACES
    for name in SPACES:
        assert f"## `lp.{name}`" in text_of(DOCS / "api.md"), f"docs/api.md has no section on lp.{name}"


def test_what_the_api_page_names_exists():
    for name in documented():
        module, _, attribute = name.rpartition(".")
        if name != "linearpatch.errors":
            assert hasattr(__import__(module, fromlist=[attribute]), attribute), name


@pytest.mark.parametrize("group", ["pruner", "patch", "distill"])
def test_every_method_is_explained(group):
    text = text_of(DOCS / "methods.md")
    for name, cls in components(group).items():
        if cls.__module__.startswith("linearpatch."):
            assert re.search(rf"^\| \[?`{name}`", text, re.MULTILINE), f"docs/methods.md has no row for {group}={name}"
            if group != "distill":
                assert f"\n### {name}\n" in text, f"docs/methods.md has no section on {group}={name}"


@pytest.mark.parametrize(("title", "rows"), list(sections()), ids=[title for title, _ in sections()])
def test_every_setting_has_a_meaning(title, rows):
    """It is written in the docstring of its dataclass, under Attributes."""
    assert [row.key for row in rows if not row.meaning] == []


def test_every_choice_and_every_key_of_a_yaml_is_in_the_reference():
    text = text_of(DOCS / "configuration.md")
    for group in (*GROUPS, *PRESET_GROUPS):
        for name in choices(group):
            assert f"| `{name}` |" in text, f"{group}={name}"
    keys = {key for group in GROUPS for file in (CONF_DIR / group).glob("*.yaml") for key in yaml_keys(file)}
    assert {key for key in keys if f"| `{key}` |" not in text} == set()


def yaml_keys(file):
    return set(yaml.safe_load(file.read_text()) or {}) - {"defaults"}


def test_a_default_in_the_reference_is_what_the_yaml_sets():
    """Not what its dataclass does."""
    rows = {row.key: row.default for row in dict(sections())["pruner: patch_aware"]}
    assert rows["finalists"] == "3"
    assert rows["protect_last"] == "0"


def anchors(document):
    """Anchors of a document's headings, as GitHub and the site make them, and those that it sets."""
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*?)(?: \{#([\w-]+)\})?$", text, re.MULTILINE)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title, _ in headings]  # links as their text
    slugs = {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in texts}
    return slugs | {anchor for _, anchor in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path in GENERATED or path.exists(), f"{document.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{document.name}: {target}"


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = {path.name for path in DOCUMENTS if path.parent == DOCS}
    assert {page for page in pages if not re.search(rf"[:-] {page}\n", navigation)} == set()


def test_the_citation_is_whole():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version"} <= set(citation)
    assert citation["version"] in (ROOT / "pyproject.toml").read_text()
