"""How much text a patch asks for, and that a run takes it."""

import re

import pytest
from conftest import tiny_model
from small_runs import FAST, result, run

from linearpatch.cli import main
from linearpatch.data.reader import FEWEST_BLOCKS, TOKENS_PER_UNKNOWN, Calibration
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import decoder_of
from linearpatch.patches.diag import Diag
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.none import NoPatch
from linearpatch.patches.refit import Refit

AUTO = ("calibration.num_blocks=auto", "calibration.block_length=32", "pruner=streamline", "patch.ridge=0.1")


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
def test_unknowns_are_the_rows_that_a_fit_solves_for(family):
    decoder = decoder_of(tiny_model(family))
    assert [patch.unknowns(decoder) for patch in (NoPatch(), Diag(), LeastSquares())] == [1, 1, 32]
    assert [patch.unknowns(decoder) for patch in (Refit(), MlpRefit())] == [80, 80]  # and 48 hidden units


def test_blocks_hold_so_many_tokens_for_each_unknown():
    calibration = Calibration(num_blocks="auto", block_length=64)
    for unknowns in (80, 1000):
        blocks = calibration.sized(unknowns).num_blocks
        assert blocks >= FEWEST_BLOCKS
        assert blocks == FEWEST_BLOCKS or 0 <= 64 * blocks - TOKENS_PER_UNKNOWN * unknowns < 64
    assert calibration.sized(1).num_blocks == FEWEST_BLOCKS
    assert Calibration(num_blocks=3).sized(1000).num_blocks == 3


@pytest.mark.parametrize("patch", ["lstsq", pytest.param("refit", marks=pytest.mark.slow)])
def test_a_run_takes_what_its_patch_needs_and_says_so(tmp_path, patch, said):
    assert run(f"patch={patch}", *AUTO, f"output_dir={tmp_path}/D") == 0
    calibration = result(tmp_path / "D")["calibration"]
    told = re.search(r"auto: (\d+) blocks of 32 tokens, 20 for each of the (\d+) unknowns of patch=(\w+)", said())
    assert told is not None
    assert (int(told[1]), told[3]) == (calibration["num_blocks"], patch)
    assert int(told[1]) * 32 == TOKENS_PER_UNKNOWN * int(told[2])


def test_a_text_that_has_less_gives_all_of_it_and_a_warning(tmp_path):
    (tmp_path / "text.txt").write_text("A few words, and a few more of them. " * 60)
    words = ("corpus=text", f"corpus.path={tmp_path}/text.txt", "patch=refit")
    assert run(*words, *AUTO, f"output_dir={tmp_path}/D") == 0
    calibration = result(tmp_path / "D")["calibration"]
    assert calibration["num_blocks"] * 32 < TOKENS_PER_UNKNOWN * 80
    assert any("too few" in note for note in (*calibration["notes"], *calibration["warnings"]))


@pytest.mark.slow
def test_runs_of_a_sweep_share_a_choice_of_layers_only_where_they_read_the_same_text(tmp_path):
    over = ("pruner=streamline", "calibration.num_blocks=auto", "calibration.block_length=32")
    assert main(["run", "-m", *FAST, *over, "patch=diag,lstsq", f"output_dir={tmp_path}/S"]) == 0
    records = [result(folder.parent) for folder in (tmp_path / "S").glob("random-*/result.json")]
    assert len({record["calibration"]["num_blocks"] for record in records}) == 2
    for record in records:
        alone = tmp_path / record["patch"]["method"]
        assert run(*over, f"patch={record['patch']['method']}", f"output_dir={alone}") == 0
        assert result(alone)["calibration"] == record["calibration"]
        assert result(alone)["metrics"] == record["metrics"]


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "many"])
def test_other_numbers_of_blocks_are_rejected(value):
    with pytest.raises(ConfigError, match="num_blocks"):
        Calibration(num_blocks=value)


def test_auto_reads_from_all_over_the_text():
    with pytest.raises(ConfigError, match=r"calibration.sampling=windows"):
        Calibration(num_blocks="auto", sampling="first")
