"""What can be known before work begins is told before, and what a setting doesn't do is told, too."""

import json
import re
from pathlib import Path

import pytest
import torch
from small_runs import result, run

from linearpatch.checkpoint.generation import Decoding, write_text
from linearpatch.cli import main
from linearpatch.errors import ConfigError, ModelError, require_path, require_seed
from linearpatch.models.hub import check_tokenizer
from linearpatch.models.model import check_device
from linearpatch.models.random import RandomModel, byte_tokenizer
from linearpatch.runtime.distributed import Workers
from linearpatch.sweep.combinations import read_combinations


@pytest.fixture(autouse=True)
def _cache(session_cache, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))


LIMITS = [
    (["num_pruned_layers=50"], "Allowed: 1 to 11"),
    (["pruner=explicit", "pruner.layers=[0,1,2]", "patch=refit"], "needs a layer before the interface"),
    (["pruner=tail", "pruner.protect_last=0", "num_pruned_layers=11", "patch=lstsq", "patch.form=low_rank",
      "patch.rank=300"], "patch.rank is 300"),
    (["distill=output_kl", "distill.patch_form=low_rank", "distill.rank=300"], "distill.rank is 300"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "told"), LIMITS)
def test_limits_of_the_model_are_told_before_it_is_loaded(words, told, tmp_path, said, monkeypatch):
    monkeypatch.setattr(RandomModel, "load", lambda *_: pytest.fail("the model was loaded"))
    assert run(*words, f"output_dir={tmp_path}/D") == 1
    assert told in said()
    assert result(tmp_path / "D")["timings_s"] == {}  # not even text was read


@pytest.mark.parametrize(
    ("words", "told"),
    [
        *LIMITS,
        (["corpus=text", "corpus.path=none.txt"], "doesn't exist"),
        (["corpus=text", "corpus.path=short.txt", "corpus.short_text=error"], "blocks of 128"),
        (
            [
                "corpus=text",
                "corpus.path=short.txt",
                "corpus.short_text=error",
                "calibration.num_blocks=1000",
                "eval=[]",
            ],
            "calibration.block_length",  # the text has less than one block
        ),
        (["eval.ppl.seq_len=100000000"], "eval.ppl.seq_len"),
        (["model.family=lama"], "Did you mean"),
        (["model=hub", "model.path=./nowhere"], "is not a folder"),
    ],
)
def test_a_dry_run_tells_them_too(words, told, tmp_path, capsys):
    Path("short.txt").write_text("A short paragraph of a few words.\n\n" * 9)
    assert run(*words, f"output_dir={tmp_path}/D", "--dry-run") == 1
    printed = capsys.readouterr()
    table = re.sub(r"[│┃\s]+", "", printed.out + printed.err)
    assert re.sub(r"\s+", "", told) in table
    assert not (tmp_path / "D").exists()


@pytest.mark.parametrize(
    "advice", ["calibration.num_blocks=2", "calibration.block_length=16", "calibration.sampling=crops"]
)
def test_advice_for_a_short_text_works(advice, tmp_path, said):
    Path("text.txt").write_text("Some words of a text that is not long.\n\n" * 60)
    words = [
        "corpus=text",
        "corpus.path=text.txt",
        "corpus.short_text=error",
        "calibration.num_blocks=8",
        "calibration.block_length=128",
        "eval=[]",
    ]
    assert run(*words, f"output_dir={tmp_path}/D") == 1
    told = said()
    assert advice.partition("=")[0] in told
    assert run(*words, advice, f"output_dir={tmp_path}/E") == 0, told


@pytest.mark.parametrize(
    "words", [["patch=lstsq", "patch.rank=8"], ["distill=output_kl", "distill.rank=8"], ["distill=full_kl",
              "distill.basis=channel"]],
)  # fmt: skip
def test_a_setting_without_effect_is_told(words, tmp_path, said):
    assert run(*words, f"output_dir={tmp_path}/D", "--dry-run") == 0
    assert "has no effect" in said()


def test_models_of_the_same_name_have_their_own_sizes(tmp_path):
    words = ["model.settings.num_hidden_layers=4,12", "num_pruned_layers=6", f"output_dir={tmp_path}/S", "--dry-run"]
    assert main(["run", "-m", "debug=tiny", "model=random", "tracker=none", *words]) == 1


@pytest.mark.parametrize("name", ["meta", "cpu:3", "xla", "fpga", "cuda:99", "cuda:-1", ""])
def test_devices_that_nothing_is_computed_on(name):
    with pytest.raises(ConfigError, match=r"model\.device is"):
        check_device(name)
    check_device("cpu")


@pytest.mark.parametrize("value", [-1, 2**63, 10**40])
def test_extreme_seeds(value):
    with pytest.raises(ConfigError, match="Allowed: from 0 to"):
        require_seed("seed", value)
    require_seed("seed", 2**63 - 1)


@pytest.mark.parametrize("value", ["x" * 256, "ü" * 128, "a/" * 2100, "a\0b", "~nobody-of-this-name/x"])
def test_names_that_no_file_can_have(value):
    with pytest.raises(ConfigError, match="output_dir is"):
        require_path("output_dir", value)
    require_path("output_dir", "~/" + "x" * 255)


@pytest.mark.parametrize("value", ["abc", "-1", "0", "1.5", "", "9" * 30, "²"])
def test_a_world_size_that_no_launcher_sets(value, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(ConfigError, match="The environment variable WORLD_SIZE is"):
        Workers.launched()


def test_a_world_size_without_a_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"RANK, MASTER_ADDR, MASTER_PORT isn't set.*unset WORLD_SIZE"):
        Workers.launched()


@pytest.mark.parametrize("setting", ["num_attention_heads: 3", "num_key_value_heads: 3"])
def test_heads_that_do_not_divide(setting):
    name, value = setting.split(": ")
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8}
    model = RandomModel(settings={**sizes, "num_attention_heads": 4, name: int(value)}, device="cpu")
    with pytest.raises((ModelError, ConfigError), match="heads"):
        model.load(Path())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- &a {pruner: *a}", "nested more than"),
        ("- {stages: &a [*a]}", "nested more than"),
        ("- {stages: " + "[" * 2000 + "]" * 2000 + "}", "nested too deeply"),
        ("- {stages: " + "[" * 50 + "]" * 50 + "}", "nested more than"),
        ("- {3: sleb}", "the key 3 is not the name"),
        ("- {group: !!binary aGVsbG8=}", "bytes, which no setting takes"),
        ("- {seed: " + "9" * 5000 + "}", "isn't YAML"),
    ],
)
def test_a_sweeps_file_of_any_content_is_a_sentence(text, told):
    Path("s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_combinations("s.yaml")


def test_aliases_that_stand_for_millions_of_values():
    levels = "".join(
        f"- &{new} {{k: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
    )
    Path("s.yaml").write_text("- &a {k: [" + ", ".join("x" * 9) + "]}\n" + levels)
    with pytest.raises(ConfigError, match="more than 200,000 values"):
        read_combinations("s.yaml")


def test_a_tokenizer_that_makes_nothing_of_a_sentence():
    class Empty:
        def __call__(self, text, **_):
            return type("Encoding", (), {"input_ids": [None]})

    with pytest.raises(ModelError, match=r"tokenizer of ./mine makes .* of a sentence.*tokenizer.json"):
        check_tokenizer(Empty(), "./mine")
    check_tokenizer(byte_tokenizer(), "./mine")


@pytest.mark.parametrize("template", ["{{ nonsense(", "{% for x in %}", "{{ messages[9]['content'] }}", "{{ 1 / 0 }}"])
def test_a_broken_chat_template_is_a_sentence(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="chat template fails"):
        write_text(torch.nn.Identity(), tokenizer, "hello", Decoding(), chat=True)


def test_a_task_whose_metric_needs_equal_choices_is_told_before_work(tmp_path, said):
    rows = [{"q": "a", "choices": ["x", "y"], "gold": 0}, {"q": "b", "choices": ["x", "y", "z"], "gold": 1}]
    Path("t").mkdir()
    Path("t/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("t/mine.yaml").write_text(
        "task: mine\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {Path.cwd()}/t/rows.jsonl}}}}\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "metric_list: [{metric: brier_score}]\n"
    )
    assert run("eval=[tasks]", "tasks=[mine]", "eval.tasks.include_path=t", f"output_dir={tmp_path}/D") == 1
    assert "questions with 2 to 3 choices" in said()
    assert set(result(tmp_path / "D")["timings_s"]) == {"read"}
