"""Control characters in what others wrote reach no terminal and no file of ours."""

import io
import logging
import re

import pytest
from rich.table import Table
from rich.text import Text
from small_runs import run

from linearpatch.runtime.console import PlainConsole, PlainFormatter
from linearpatch.text import CONTROL, printable, printable_values

HOSTILE = "evil\x1b]0;title\x07\x1b[2J\r\x9b31m\u202etxt.exe\u2066\u200f\x00\x7f"
OURS = re.compile(r"\x1b\[[\d;]*m")  # colours of rich


def is_plain(text):
    return not CONTROL.search(OURS.sub("", text))


def test_text_in_any_language_stays_as_it_is():
    for text in ("naïve Größe", "नमस्ते", "שלום", "مرحبا", "👩\u200d👩\u200d👧", "日本語", "a\tb\nc"):
        assert printable(text) == text


def test_control_characters_become_visible():
    assert printable("a\x1b[31m\rb\u202e\ud800") == r"a\x1b[31m\rb\u202e\ud800"
    assert printable_values({HOSTILE: [HOSTILE, 1, None, (HOSTILE,)]}) == {
        printable(HOSTILE): [printable(HOSTILE), 1, None, [printable(HOSTILE)]]
    }


@pytest.mark.parametrize("what", ["text", "markup", "cell", "title"])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_console_prints_no_control_characters_but_its_own(what, is_terminal):
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=is_terminal, width=200)
    table = Table(title=HOSTILE if what == "title" else "t")
    table.add_column("head", style="red")
    table.add_row(HOSTILE if what == "cell" else "cell")
    console.print({"text": Text(HOSTILE, style="red"), "markup": f"[bold]{HOSTILE}[/bold]"}.get(what, table))
    assert "evil" in file.getvalue()
    assert is_plain(file.getvalue())
    assert bool(OURS.search(file.getvalue())) == is_terminal


def test_a_line_of_a_log_has_none():
    record = logging.LogRecord("linearpatch", logging.INFO, "", 1, "model %s", (HOSTILE,), None)
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    line = PlainFormatter("%(levelname)s %(message)s").format(record)
    assert "Traceback" in line
    assert is_plain(line)


@pytest.mark.parametrize("name", ["model.name", "group"])
def test_a_run_with_a_hostile_name_logs_text(tmp_path, capsys, name):
    overrides = ["pruner=tail", "patch=none", "eval=[]", f"output_dir={tmp_path}/D", f"cache_dir={tmp_path}/cache"]
    run(*overrides, f'{name}="evil\x1b[2J\u202e"')
    captured = capsys.readouterr()
    assert is_plain(captured.out)
    assert is_plain(captured.err)
    log = tmp_path / "D" / "run.log"
    assert not log.exists() or is_plain(log.read_text(encoding="utf-8"))
