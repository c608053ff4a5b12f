import pytest

from linearpatch.errors import ConfigError
from linearpatch.sweep.combinations import as_overrides, read_combinations


def test_combinations_are_overrides():
    combination = {"pruner": "sleb,shortgpt", "seed": 3, "save_model": True, "group": None, "eval": ["ppl", "smoke"]}
    assert as_overrides(combination) == [
        "pruner=sleb,shortgpt", "seed=3", "save_model=true", "group=null", "eval=[ppl,smoke]",
    ]  # fmt: skip
    assert as_overrides({"calibration": {"num_blocks": 4}}) == ["calibration={num_blocks:4}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("a: [", "isn't YAML"),
        ("pruner: sleb", "doesn't hold combinations"),
        ("[]", "doesn't hold combinations"),
        ("- sleb", "doesn't hold combinations"),
    ],
)
def test_a_file_that_holds_none_is_refused(text, message, tmp_path):
    file = tmp_path / "sweep.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_combinations(str(file))
