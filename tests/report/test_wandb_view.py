"""The comparison as an object of wandb-workspaces, which needs no network until it is saved."""

import builtins

import pytest
from report_runs import record, write

from linearpatch.errors import ConfigError
from linearpatch.report.reading import read_runs
from linearpatch.report.report import compare_runs
from linearpatch.report.wandb_view import build_wandb_report, push_wandb_report

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")


@pytest.fixture
def runs(tmp_path):
    tracked = {"tracker": {"wandb": {"project": "mine", "entity": None}}}
    distilled = record(patch="lstsq", config=tracked, dense=10.0, pruned=20.0, patched=14.0, distilled=12.0)
    return write(tmp_path / "runs", record(config=tracked), distilled)


def test_a_report_holds_plots_over_these_runs_and_the_tables(runs):
    pytest.importorskip("wandb_workspaces")
    comparison = compare_runs(read_runs([runs]))
    view = build_wandb_report(comparison, "mine", "me", "A title")
    assert (view.project, view.entity, view.title) == ("mine", "me", "A title")
    grid = next(block for block in view.blocks if hasattr(block, "panels"))
    assert all(run.record.run_id in grid.runsets[0].filters for run in comparison.selected.runs)
    shown = " ".join(str(panel) for panel in grid.panels)
    for name in ("patched/ppl/wikitext2", "distilled/ppl/wikitext2", "num_removed", "distill/validation_loss"):
        assert name in shown
    texts = [block.text for block in view.blocks if hasattr(block, "text")]
    assert any("| lstsq |" in str(text) for text in texts)


def test_runs_of_several_projects_need_one_named(runs):
    pytest.importorskip("wandb_workspaces")
    write(runs, record(patch="diag", config={"tracker": {"project": "other one"}}))
    with pytest.raises(ConfigError, match=r"several values of tracker\.wandb\.project: mine, other one"):
        push_wandb_report([runs])


def test_without_the_package_it_is_said_how_to_install_it(runs, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith("wandb_workspaces"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'linearpatch\[wandb\]'"):
        push_wandb_report([runs])
