import pytest
from small_runs import FAST

from linearpatch.cli import main
from linearpatch.cli.jobs import Jobs
from linearpatch.config import compose_experiment
from linearpatch.errors import ConfigError
from linearpatch.sweep.combinations import as_overrides, read_combinations


def test_combinations_are_overrides():
    combination = {"pruner": "sleb,shortgpt", "seed": 3, "save_model": True, "group": None, "eval": ["ppl", "smoke"]}
    assert as_overrides(combination) == [
        "pruner=sleb,shortgpt", "seed=3", "save_model=true", "group=null", "eval=[ppl,smoke]",
    ]  # fmt: skip
    assert as_overrides({"calibration": {"num_blocks": 4}}) == ["calibration={num_blocks:4}"]
    assert as_overrides({"seed": {"values": [0, 1]}, "model": "./a, ./b"}) == ["seed=0,1", "model=./a,./b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("a: [", "isn't YAML"),
        ("pruner: sleb", "doesn't hold combinations"),
        ("[]", "doesn't hold combinations"),
        ("- sleb", "doesn't hold combinations"),
        ("- {seed: 1, seed: 2}", "found duplicate key"),
        ("[" * 2000, "isn't YAML|nested too deeply"),
    ],
)
def test_a_file_that_holds_none_is_rejected(text, message, tmp_path):
    file = tmp_path / "sweep.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_combinations(str(file))


def test_no_file_is_rejected():
    with pytest.raises(ConfigError, match="sweep= names no file"):
        read_combinations("")


@pytest.mark.parametrize(
    ("combination", "message"),
    [
        ({"seed": {"values": []}}, r"seed.values is \[\]"),
        ({"seed": {"values": "0,1"}}, "seed.values is '0,1'"),
        ({3: 1}, "3 is not the name of a setting"),
        ({"a b": 1}, "'a b' is not the name of a setting"),
        ({"a=b": 1}, "'a=b' is not the name of a setting"),
    ],
)
def test_what_is_no_combination_is_rejected(combination, message):
    with pytest.raises(ConfigError, match=message):
        as_overrides(combination)


@pytest.fixture
def planned(monkeypatch):
    """The experiments that a sweep would run."""

    def plan(*words):
        found = []

        def sweep(self, name, settings, combinations, *, compose, config):
            found[:] = combinations

        monkeypatch.setattr(Jobs, "sweep", sweep)
        assert main(["run", "-m", *(word for word in FAST if "model=" not in word), *words]) == 0
        return [compose_experiment(combination) for combination in found]

    return plan


PATHS = ("tëxt (v2).txt", "a=b.txt", "x#1.txt", "null", "a,b.txt", 'it\'s "q".txt', " 1e5", "[a]", "back\\\\slash")


@pytest.mark.slow
def test_texts_of_a_file_arrive_as_they_are(planned, tmp_path):
    import yaml

    file = tmp_path / "sweep, v (2).yaml"
    entries = [{"corpus": "text", "corpus.path": path, "group": "null"} for path in PATHS]
    entries.append({"corpus": "text", "corpus.path": "x", "group": None, "seed": {"values": [3, 4]}})
    file.write_text(yaml.safe_dump(entries, allow_unicode=True))
    found = planned(f"sweep={file}")
    assert [one.corpus.path for one in found] == [*PATHS, "x", "x"]
    assert [one.group for one in found] == ["null"] * len(PATHS) + [None, None]
    assert [one.seed for one in found[-2:]] == [3, 4]


def test_numbers_of_a_file_are_those_of_other_yamls(planned, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("- {pruner: tail, patch: lstsq, patch.ridge: 1e-3}\n- {patch: lstsq, patch.ridge: auto}\n")
    assert [one.patch.ridge for one in planned(f"sweep={file}")] == [1e-3, "auto"]


def test_folders_are_models_in_products_and_files(planned, tmp_path):
    assert [one.model.path for one in planned("model=./a", "seed=0,1")] == ["./a", "./a"]
    assert [one.model.path for one in planned("seed=0,1", "model=org/b")] == ["org/b", "org/b"]
    assert [one.model.path for one in planned("model=./a,org/b", "seed=0")] == ["./a", "org/b"]
    file = tmp_path / "sweep.yaml"
    file.write_text("- {model: './a,./b', pruner: tail}\n- {model: ../c}\n- {model: {values: ['./d,e', random]}}\n")
    found = planned(f"sweep={file}")
    assert [getattr(one.model, "path", "random") for one in found] == ["./a", "./b", "../c", "./d,e", "random"]
