"""Sweeps from the command line: resumed, isolated, forced, rejected, and run by each launcher."""

import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from small_sweeps import APART, GRID, SLOW, TINY, kill_one, records, states

from linearpatch.cli import main
from linearpatch.config import compose_experiment
from linearpatch.storage.temporary import temporary_path
from linearpatch.sweep.launchers import LAUNCHERS
from linearpatch.sweep.launchers.slurm import SlurmLauncher
from linearpatch.sweep.worker import _with_less_memory


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))


def sweep(*overrides) -> int:
    return main(["run", "-m", *TINY, *overrides])


def shown(capsys) -> str:
    """What was printed to stdout since the last call, in one line: a sentence in a table's cell is whole."""
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    """The folder of a finished sweep, `S`, and of its cache."""
    folder = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LINEARPATCH_CACHE", str(folder / "cache"))
        assert sweep(*GRID, "output_dir=S") == 0
    return folder


@pytest.mark.parametrize(("pruner", "patch"), [("streamline", "none"), ("sleb", "rotate")])
def test_a_sweep_measures_what_single_runs_measure(grid, pruner, patch):
    alone = [*TINY, f"pruner={pruner}", f"patch={patch}"]
    run_id = compose_experiment(alone).run_id
    assert main(["run", *alone, f"output_dir=alone/{run_id}"]) == 0
    assert records("alone") == {run_id: records(grid / "S")[run_id]}
    assert "rank …" in (grid / "S" / run_id / "run.log").read_text()


def test_shared_steps_leave_nothing_to_compute_to_the_runs(grid):
    assert {path.parent.name for path in (grid / "S").glob("*/result.json")} == set(records(grid / "S"))
    parts = sorted(path.parent.name.partition("-")[0] for path in (grid / "S/.shared").glob("*/result.json"))
    assert parts == ["dense", "pruned", "pruned", "statistics"]
    for log in (grid / "S").glob("*/output.log"):
        assert "waiting for another process" not in log.read_text()
    kept = {path.parent.name for path in (grid / "cache").glob("*/*.safetensors")}
    assert {"statistic", "removal_loss", "evaluation"} <= kept


def test_a_finished_sweep_is_not_run_again(grid, capsys, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(grid / "cache"))
    monkeypatch.chdir(grid)
    before = {file: file.stat().st_mtime_ns for file in Path("S").rglob("*.json")}
    assert sweep(*GRID, "output_dir=S") == 0
    assert capsys.readouterr().out.count("already complete") == 4
    changed = [f for f, stamp in before.items() if f.stat().st_mtime_ns != stamp and ".sweeps" not in str(f)]
    assert changed == []


@pytest.mark.slow
def test_what_is_missing_is_added_and_force_recomputes_all(tmp_path, capsys):
    assert sweep("patch=none", "output_dir=S") == 0
    capsys.readouterr()
    more = ("patch=none,rotate", "eval=[ppl,diagnostics]", "output_dir=S")
    assert sweep(*more) == 0
    assert "already complete" not in capsys.readouterr().out  # the diagnostics are new for both
    first = records("S")
    assert len(first) == 2
    for record in first.values():
        assert {"ppl/pydoc", "diagnostics/final_cosine_to_dense"} <= set(record["metrics"]["pruned"])
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert sweep(*more, "force=true") == 0
    assert all(file.stat().st_mtime_ns > stamp for file, stamp in before.items())
    second = records("S")
    for record in (*first.values(), *second.values()):
        del record["config"]
    assert first == second


def test_combinations_that_a_product_cannot_say(tmp_path, capsys):
    (tmp_path / "combinations.yaml").write_text(
        "- {pruner: streamline, num_pruned_layers: 2}\n- {pruner: shortgpt, num_pruned_layers: {values: [3, 4]}}\n"
    )
    words = [word for word in TINY if not word.startswith("num_pruned")]
    assert main(["run", "-m", *words, "sweep=combinations.yaml", "patch=none", "output_dir=S", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert all(f"random-{run}-none-" in told for run in ("streamline-2", "shortgpt-3", "shortgpt-4"))
    assert "random-streamline-3" not in told
    over = ("pruner=tail", "num_pruned_layers=5")  # the command line has the last word
    assert main(["run", "-m", *words, "sweep=combinations.yaml", *over, "output_dir=S", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "in S: 1 job to do" in told
    assert "random-tail-5-" in told
    none = ("hydra.sweeper.combinations=null", "patch=none,rotate")  # the command line's values alone
    assert main(["run", "-m", *words, "experiment=demo", *none, "output_dir=T", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("random-streamline-5-") == 2


def test_an_impossible_combination_does_not_stop_the_others(capsys):
    assert sweep("patch=none,rotat", "output_dir=S") == 1
    assert list(states("S").values()) == ["completed"]
    assert "Did you mean 'rotate'?" in shown(capsys)


@pytest.mark.slow
def test_a_dry_run_touches_nothing(tmp_path, capsys):
    assert sweep(*GRID, "output_dir=S", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "8 jobs to do" in told
    assert "choose layers" in told
    assert not (tmp_path / "S").exists()
    assert main(["run", *TINY, "--dry-run"]) == 0
    assert "1 job to do" in capsys.readouterr().out
    assert sweep("patch=none,rotat", "output_dir=S", "--dry-run") == 1
    told = shown(capsys)
    assert "in S: 1 job to do, 1 impossible" in told
    (tmp_path / "none.yaml").write_text("- {patch: null}\n")
    assert sweep("sweep=none.yaml", "output_dir=S", "--dry-run") == 1
    assert "patch=null chooses nothing" in shown(capsys)
    (tmp_path / "list.yaml").write_text("- {patch: [none, rotate]}\n- {patch: none, eval: [ppl, smoke]}\n")
    assert sweep("sweep=list.yaml", "output_dir=S", "--dry-run") == 1
    told = capsys.readouterr().out
    assert "in S: 1 job to do, 1 impossible" in told
    assert "'none,rotate'" in told


def test_a_dry_run_says_what_a_run_would_reject(capsys):
    assert main(["run", *TINY, "num_pruned_layers=12", "--dry-run"]) == 1
    assert "Allowed: 1 to 11." in shown(capsys)
    assert sweep("num_pruned_layers=3,12", "output_dir=S", "--dry-run") == 1
    told = shown(capsys)
    assert "Allowed: 1 to 11." in told


@pytest.mark.slow
def test_evaluations_in_two_ways_are_two_runs(capsys):
    assert sweep("patch=none", "eval.ppl.seq_len=64,128", "output_dir=S") == 0
    sizes = {record["metrics"]["dense"]["ppl/pydoc"]["n"] for record in records("S").values()}
    assert len(sizes) == 2
    capsys.readouterr()
    assert sweep("patch=none", "eval.ppl.seq_len=64,128", "output_dir=S") == 0
    assert capsys.readouterr().out.count("already complete") == 2


SETTINGS = {
    "basic": ["hydra.launcher.n_jobs=2"],
    "joblib": ["hydra.launcher.n_jobs=2"],
    "ray": ["hydra.launcher.num_cpus=0.5"],
    "slurm": ["hydra.launcher.cluster=local", "hydra.launcher.gpus_per_node=0", "hydra.launcher.array_parallelism=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_runs_a_sweep_in_which_a_job_dies(launcher, capfd):
    needed = {"ray": "ray", "slurm": "submitit"}.get(launcher)
    if needed:
        pytest.importorskip(needed)
    killer = threading.Thread(target=kill_one, args=("S",))
    killer.start()
    words = [*TINY, *SLOW, *APART, f"hydra/launcher={launcher}", *SETTINGS[launcher], "output_dir=S"]
    assert main(["run", "-m", *words]) == 1
    killer.join()
    assert "killed by SIGKILL" in capfd.readouterr().err
    assert sorted(states("S").values()) == ["completed", "failed"]


def test_pickles_of_a_cluster_are_private_and_removed_after_the_sweep(tmp_path):
    pytest.importorskip("submitit")
    base = tmp_path / "pickles"
    dead = subprocess.Popen(["true"])
    dead.wait()
    of_dead, of_living = (temporary_path(base / "sweep") for _ in range(2))
    of_dead = of_dead.with_name(of_dead.name.replace(f"~{os.getpid()}~", f"~{dead.pid}~"))
    for folder in (of_dead, of_living):
        folder.mkdir(parents=True)
        os.utime(folder, (1, 1))  # its jobs wait in the queue for long
    launcher = SlurmLauncher(cluster="local", folder=str(base), gpus_per_node=0)
    before = os.umask(0o002)
    try:
        with launcher.opened():
            assert not of_dead.exists()
            (own,) = set(base.iterdir()) - {of_living}
            assert stat.S_IMODE(own.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert list(base.iterdir()) == [of_living]
    of_living.rmdir()
    with launcher.opened():
        pass
    assert not base.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs is 0. Allowed on this machine: 1, 2, …, or -1"),
        (["hydra.launcher.n_jobs=many"], "n_jobs is 'many'. Allowed: a whole number."),
        (["hydra.launcher.gpus_per_job=1.5"], "Allowed: a whole number, or a share below 1"),
        (["hydra.launcher.n_jobs=-9999"], "n_jobs is -9999. Allowed"),
        (["hydra/launcher=slurm", "hydra.launcher.cluster=pbs"], "Allowed: local, slurm"),
        (["hydra/launcher=ray", "hydra.launcher.num_cpus=-1"], "Allowed: at least 0"),
        (["hydra/launcher=ray", "hydra.launcher.num_cpus=9999"], "num_cpus is 9999, and this machine has"),
        (["hydra/launcher=rey"], "Did you mean 'ray'?"),
        (["hydra.launcher.njobs=2"], "njobs"),
        (["sweep=nowhere.yaml"], "can't be read"),
        (["hydra/launcher=slurm", "hydra.launcher.timeout_min=-1"], "timeout_min is -1"),
        (["--cfg", "job"], "Leave -m out"),
        (["group=../evil"], "group is '../evil'"),
        (["pruner=[sleb,taylor]"], "is a list, where a run takes one pruner."),
        (["output_dir=S,T"], "output_dir is S, T: a sweep has one folder"),
    ],
)
@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_launcher_that_cannot_be_is_rejected_before_anything_runs(overrides, message, how, tmp_path, capsys):
    assert sweep("patch=none,rotate", "output_dir=S", *overrides, *how) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "S").exists()


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
@pytest.mark.parametrize("words", [["-m", "patch=none,rotate"], []])
def test_an_output_dir_that_cannot_be_is_rejected_before_anything_runs(words, how, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        assert main(["run", *words, *TINY, f"output_dir={place}", *how]) == 1
        assert f"Can't create the folder {place}: file is a file." in " ".join(capsys.readouterr().err.split())


def test_what_runs_out_of_a_gpus_memory_is_repeated_once_with_half_the_batches():
    experiment = compose_experiment(
        ["calibration.batch_size=4", "eval.ppl.batch_size=1", "distill=output_kl", "distill.batch_size=2"]
    )
    tried = []

    def attempt(given, remark):
        tried.append((given.calibration.batch_size, given.distill.batch_size, given.distill.accumulation, remark))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")

    _with_less_memory(experiment, attempt)
    remark = "CUDA out of memory: repeated with half the batch size"
    assert tried == [(4, 2, 1, None), (2, 1, 2, remark)]
    assert compose_experiment([]).with_half_batches() is None
    tried.clear()
    with pytest.raises(torch.OutOfMemoryError):
        _with_less_memory(compose_experiment(["distill=output_kl"]), attempt)
    assert len(tried) == 1  # batches of one can't be halved
