"""One bad record costs one record: it is left out with its reason, and the others are reported."""

import copy
import io
import json
import os
import time
from dataclasses import replace

import pytest
from report_runs import answers, metric, record
from rich.console import Console

from linearpatch.errors import StorageError
from linearpatch.report.report import write_report
from linearpatch.report.run_table import run_table, sweep_tables
from linearpatch.report.terminal import rich_table
from linearpatch.results.files import read_record, write_record
from linearpatch.results.metric import Metric, Retained
from linearpatch.results.parsing import parse
from linearpatch.results.scores import LayerScores, SearchStep
from linearpatch.results.sections import CalibrationSection, CheckpointSection
from linearpatch.results.state import state_of
from linearpatch.sweep.status import Watch, status_table

WRONG = [
    None, "x", -1, 0, True, 3.5, 1e99, 1e308, -1e308, 10**30, [], {}, [1], {"a": 1}, [[[[1]]]], "x" * 2000,
    "\x1b[31mred\x1b]0;title\x07\u202e",
]  # fmt: skip
# Settings, and the scores of a pruner, may be of any form.
FREE = ("config.seed", "config.calibration", "config.corpus.name", "pruning.scores.")


def full_record():
    """A completed run with all that a record can hold."""
    config = {"corpus": {"name": "c"}, "calibration": {"corpus": None}}
    one = record(dense=10.0, pruned=20.0, patched=15.0, distilled=12.0, config=config)
    for stage in one.metrics.values():
        stage.update(answers(a__acc=0.5, b__acc=0.4))
    versus = {"dense": {"difference": 0.1, "low": 0.0, "high": 0.2}}
    one.metrics["patched"]["qa/paper"] = replace(one.metrics["patched"]["qa/paper"], versus=versus)
    ratio = {"dense": {"ratio": 1.1, "low": 1.0, "high": 1.2}}
    one.metrics["patched"]["speed/prefill_tokens_per_s"] = metric(100.0, unit="1/s", versus=ratio)
    one.retained = {"patched": {"mean_of_ratios": {"qa/paper": Retained(0.9, 0.8, 1.0)}}}
    one.checkpoint = CheckpointSection("model", "plain", 3)
    one.answered = {"dense/ppl": "abc"}
    one.calibration = CalibrationSection("c", 4, 8, "d", notes=["n"])
    return one


def places(value, before=()):
    """Every place in nested values, of lists the first one."""
    yield before
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*before, key))


def with_value(content, place, value):
    if not place:
        return value
    changed = copy.deepcopy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def without(content, place):
    changed = copy.deepcopy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return changed


def mutants():
    """The full record with one value wrong or missing, each with the place and what stands there."""
    content = json.loads(full_record().to_json())
    for place in places(content):
        for value in WRONG:
            yield ".".join(map(str, place)), value, with_value(content, place, value)
        if place and isinstance(place[-1], str):
            yield ".".join(map(str, place)), "missing", without(content, place)


@pytest.fixture(scope="module")
def parsed():
    """Each mutant as text, and the reason for which it is rejected or None."""
    found = []
    for place, value, content in mutants():
        text = json.dumps(content)
        try:
            parse(text.encode())
            found.append((place, value, text, None))
        except ValueError as error:
            found.append((place, value, text, str(error)))
    return found


def printed(*tables):
    console = Console(file=io.StringIO(), width=250)
    console.print(*tables)
    return console.file.getvalue()


def test_a_wrong_value_is_rejected_by_its_place(parsed):
    """With any other type of value than the field's: those that readers reckon with, or look into."""
    rejected = {(place, type(value)) for place, value, _, reason in parsed if reason}
    content = json.loads(full_record().to_json())
    for place in places(content):
        name, right = ".".join(map(str, place)), content
        for key in place:
            right = right[key]
        if right is None or name.startswith(FREE) or not place:
            continue
        allowed = {type(right)} | ({int} if isinstance(right, float) else set())
        for kind in {bool, str, list, dict, int, float} - allowed:
            assert (name, kind) in rejected, (name, kind)
    for place, value, _, reason in parsed:
        last = place.split(".")[-1]
        if reason and place and not isinstance(value, (int, float)):
            assert last in reason or place.split(".")[0] in reason, (place, value, reason)


@pytest.mark.slow
def test_a_report_and_a_status_hold_what_can_be_read_and_name_the_rest(parsed, tmp_path):
    good = full_record()
    write_record(good, tmp_path / "runs" / "good")
    accepted, rejected = [], []
    for at, (place, value, text, reason) in enumerate(parsed):
        content = json.loads(text)
        if isinstance(content, dict) and place != "run_id" and "run_id" in content:
            content["run_id"] = f"mutant {at}"
        if reason is None and value not in (True,) and place not in ("run_id", "status"):
            accepted.append(content)
        elif at % 40 == 0:
            rejected.append(content)
    for at, content in enumerate([*accepted[::8], *rejected]):
        (tmp_path / "runs" / f"bad {at}").mkdir()
        (tmp_path / "runs" / f"bad {at}" / "result.json").write_text(json.dumps(content))
    report = write_report([tmp_path / "runs"], tmp_path / "report")
    assert report.num_runs >= 1 + len(accepted[::8]) * 0.9
    assert {failure.status for failure in report.failures} >= {"unreadable"}
    assert len(report.failures) >= len(rejected)
    assert good.run_id in (tmp_path / "report" / "tables" / "costs.csv").read_text()
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "\x1b" not in text
    assert "\u202e" not in text
    shown = printed(status_table(tmp_path / "runs", Watch(tmp_path / "runs").look().jobs))
    assert shown.count("failed") >= len(rejected)
    assert "\x07" not in shown
    records = [one.record for one in map(state_of, (tmp_path / "runs").iterdir()) if one.record]
    printed(*map(rich_table, sweep_tables(records)))
    for one in records:
        if one.model and one.pruning and one.patch:
            printed(rich_table(run_table(one)))


TEXTS = {
    "nothing": b"",
    "not JSON": b"{",
    "null": b"null",
    "a list": b"[1, 2]",
    "NaN": b'{"schema_version": NaN}',
    "Infinity": b'{"schema_version": -Infinity}',
    "a number that is infinite": b'{"schema_version": 1e999}',
    "a number of 5000 digits": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep mappings": b'{"schema_version": 1, "config": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "half a surrogate": b'{"run_id": "\\ud800"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"schema_version": 1}'.encode("utf-16"),
    "Latin-1": '{"run_id": "tëxt"}'.encode("latin-1"),
    "bytes": bytes(range(256)) * 100,
    "a pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94.",
    "a later version": b'{"schema_version": 2}',
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_record_is_told_by_its_file_and_reason(name, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_bytes(TEXTS[name])
    write_record(record(), tmp_path / "good")
    with pytest.raises(StorageError, match=r"bad/result\.json is not a run record of this version: \w.*Move it away"):
        read_record(tmp_path / "bad")
    states = {job.name: job.now.state for job in Watch(tmp_path).look().jobs}
    assert states == {"bad": "failed", "good": "completed"}


def test_what_is_no_file_or_too_large_is_not_read(tmp_path):
    for name in ("pipe", "folder", "loop", "huge", "good"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "result.json")
    (tmp_path / "folder" / "result.json").mkdir()
    (tmp_path / "loop" / "result.json").symlink_to("result.json")
    with (tmp_path / "huge" / "result.json").open("wb") as file:
        file.truncate(2**40)
    write_record(record(), tmp_path / "good")
    started = time.perf_counter()
    for name in ("pipe", "folder", "loop", "huge"):
        with pytest.raises(StorageError, match=name):
            read_record(tmp_path / name)
    assert {job.name: job.now.state for job in Watch(tmp_path).look().jobs}["good"] == "completed"
    assert time.perf_counter() - started < 5


def forged(**changes):
    """The full record with other values at dotted places."""
    content = json.loads(full_record().to_json())
    for place, value in changes.items():
        content = with_value(content, tuple(place.split(".")), value)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("model.num_layers", 1_000_000_000, "model.num_layers"),
        ("pruning.removed_layers", [0, 1_000_000_000], "pruning.removed_layers.1"),
        ("pruning.removed_layers", [3, 3], "names a layer twice"),
        ("pruning.removed_layers", [12], "layer 12 of a model that has 12 layers"),
        ("pruning.interfaces", [[5, 3]], "ends before it starts"),
        ("pruning.interfaces", [[3, 13]], "layer 13 of a model that has 12 layers"),
        ("pruning.interfaces", [[3]], "pruning.interfaces.0"),
        ("pruning.ratio", 1.5, "pruning.ratio"),
        ("pruning.num_parameters_removed", 10_000_001, "more parameters than the model has"),
        ("timings_s", {"rank": 1e13}, "timings_s.rank"),
        ("model", None, "model: it is null"),
        ("status", "done", "status"),
        ("seed", 2**64, "seed"),
    ],
)
def test_forged_values(place, value, told):
    with pytest.raises(ValueError, match=told):
        parse(forged(**{place: value}))


@pytest.mark.slow
def test_scores_that_nobody_can_draw_cost_one_figure(tmp_path, caplog):
    bad = LayerScores("x", steps=[SearchStep(3, {"1000000000": 3.0})])
    for name, scores in {"good": full_record().pruning.scores, "bad": bad}.items():
        one = record(pruner=name)
        one.pruning = replace(one.pruning, scores=scores)
        write_record(one, tmp_path / name)
    report = write_report([tmp_path], tmp_path / "report")
    assert "figures/scores_tiny.png" in report.files
    assert "layer_scores" not in caplog.text


@pytest.mark.slow
def test_names_longer_than_a_file_may_have(tmp_path):
    one = record(model="m" * 900)
    write_record(one, tmp_path / "runs")
    assert write_report([tmp_path / "runs"], tmp_path / "report").num_runs == 1


def test_a_record_written_is_a_record_read(tmp_path):
    one = full_record()
    one.metrics["dense"]["ppl/wikitext2"] = metric(float("inf"))
    one.error, one.command = "a file called \udcff", "a\tb\nc"
    write_record(one, tmp_path)
    read = read_record(tmp_path)
    assert read.metrics["dense"]["ppl/wikitext2"].value is None
    assert read.error == "a file called \\udcff"
    assert read.command == "a\tb\nc"
    assert read.metrics["patched"] == one.metrics["patched"]


def test_no_metric_is_too_large_for_its_record():
    for value in (float("inf"), float("nan"), 1e150):
        assert Metric.of(value, 1.0, 1, "p", "h").value is None
    assert Metric.of(1e99, 1e150, 1, "p", "h").stderr is None


def test_later_fields_are_kept():
    read = parse(forged(**{"model.later": 1, "model.__class__": "x", "later": [1]}))
    assert read.model.num_layers == 12
    assert read.to_plain()["model"]["later"] == 1


def test_fields_that_are_called_as_what_readers_ask_for_do_no_harm():
    """Methods and properties of a section, in a record that somebody wrote to do harm."""
    read = parse(forged(**{"metrics.dense.ppl/wikitext2.is_comparable": 3, "num_parameters": 1, "require_edit": 2}))
    metric = read.metrics["dense"]["ppl/wikitext2"]
    assert metric.is_comparable(metric)
    assert read.num_parameters("dense") == 10_000_000


@pytest.mark.parametrize(
    "text",
    ['{"label": "s", "planned": 1}', '{"label": 1, "planned": "x", "jobs": 3}', "[" * 100_000,
     '{"label": "s", "planned": 1, "jobs": [{"name": "a", "part": "run", "folder": "\\u0000"}]}'],
)  # fmt: skip
def test_a_bad_list_of_a_sweep_is_a_sentence(text, tmp_path):
    (tmp_path / ".sweeps").mkdir()
    (tmp_path / ".sweeps" / "s.json").write_text(text)
    with pytest.raises(StorageError, match=r"s\.json is not the list of a sweep"):
        Watch(tmp_path).look()
