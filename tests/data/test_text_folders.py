"""A folder is a text: its files are read in order, and the rest is named."""

import logging
from pathlib import Path

import pytest

from linearpatch.data.files import TextCorpus
from linearpatch.errors import DataError, LinearPatchError


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    return folder


def test_a_folder_is_read_with_its_subfolders_and_the_rest_is_named_once(tmp_path, caplog):
    folder = fill(
        tmp_path / "mine", "b.txt", "a/z.TXT", "a/b/c.md", "README", ".DS_Store", "a.txt~", ".hidden/x.txt", "a/.x.txt"
    )
    (folder / "c.txt").symlink_to(folder / "b.txt")
    (folder / "circle").symlink_to(folder)
    (folder / "dangling.txt").symlink_to(tmp_path / "nowhere")
    corpus = TextCorpus(path=str(folder))
    expected = ["text of a/b/c.md", "text of a/z.TXT", "text of b.txt", "text of b.txt"]
    assert corpus.documents("all") == corpus.documents("all") == expected
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "4 files of" in record.message
    assert "skipped: .DS_Store, .hidden, README, a/.x.txt, a.txt~ and 2 more" in record.message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "it holds nothing"),
        ((".x.txt", "README", "sub/a.pdf"), r"it holds \.x\.txt, README, sub/a\.pdf\. Read are"),
    ],
)
def test_a_folder_without_text_says_what_it_holds(tmp_path, names, message):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match=message):
        TextCorpus(path=str(fill(tmp_path / "mine", *names))).read("calibration")


def test_a_broken_file_of_a_folder_is_named(tmp_path):
    fill(tmp_path, "a.txt", "b.json")
    with pytest.raises(DataError, match=r"b\.json can't be read as json"):
        TextCorpus(path=str(tmp_path)).read("calibration")


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "~nobody-of-this-name/a.txt", "/dev/null", "nothing.txt"])
def test_paths_that_are_no_files(path):
    with pytest.raises(LinearPatchError, match=r"corpus\.path( is|=)"):
        TextCorpus(path=path).read("calibration")


def test_case_folder_of_text(tmp_path):
    fill(tmp_path, "sub/deep/a.txt", "sub/b.txt", "hid/.x.txt", "hid/a.txt", "junk/a.txt", "junk/.DS_Store")
    read_from = {name: TextCorpus(path=str(tmp_path / name)).documents("all") for name in ("sub", "hid", "junk")}
    assert read_from == {
        "sub": ["text of sub/b.txt", "text of sub/deep/a.txt"],
        "hid": ["text of hid/a.txt"],
        "junk": ["text of junk/a.txt"],
    }
