"""Control characters in records reach neither the terminal nor a file of the report."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout

import pytest
from report_runs import record, write

from linearpatch.cli import main
from linearpatch.text import CONTROL

pytestmark = pytest.mark.filterwarnings("error:Glyph")  # of figures

HOSTILE = "evil\x1b]0;title\x07\x1b[2J\r\x9b31m\u202etxt.exe\u2066\u200f\x00\x7f"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What is printed of hostile records, and the report that is written."""
    hostile = record(model=HOSTILE, pruner=HOSTILE, patch=HOSTILE)
    hostile.remark = HOSTILE
    hostile.run_id = "hostile"
    failed = record(seed=1)
    failed.run_id, failed.status, failed.error = "failed", "failed", HOSTILE
    folder = tmp_path_factory.mktemp("hostile")
    write(folder, hostile, record(), failed)
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
        main(["report", str(folder), "--output", str(folder / "report")])
        main(["status", str(folder), "--once"])
    return printed.getvalue(), folder / "report"


def test_the_terminal_gets_none(report):
    printed, _ = report
    assert r"evil\x1b]0;title" in printed
    assert not CONTROL.search(printed)


def test_tables_have_none(report):
    files = [file for file in report[1].rglob("*") if file.suffix in (".md", ".tex", ".csv")]
    assert len(files) > 5
    assert any("evil" in file.read_text(encoding="utf-8") for file in files)
    for file in files:
        assert not CONTROL.search(file.read_text(encoding="utf-8")), file
    latex = next(file for file in files if file.suffix == ".tex" and "evil" in file.read_text(encoding="utf-8"))
    assert r"evil\textbackslash{}x1b" in latex.read_text(encoding="utf-8")


def strings(value):
    if isinstance(value, dict):
        return [text for pair in value.items() for text in strings(list(pair))]
    return [text for item in value for text in strings(item)] if isinstance(value, list) else [str(value)]


def test_the_page_has_none(report):
    page = (report[1] / "report.html").read_text(encoding="utf-8")
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, flags=re.DOTALL)
    assert any("evil" in block for block in blocks)
    for block in blocks:
        assert not any(CONTROL.search(text) for text in strings(json.loads(block)))
    title = re.search(r"<title>(.*?)</title>", page, flags=re.DOTALL)
    assert not CONTROL.search(title[1])
