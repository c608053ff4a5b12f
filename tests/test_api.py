"""The public functions, on a model in memory, as a person would call them."""

import logging
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import torch
from conftest import NUM_LAYERS, tiny_model
from huggingface_hub import ModelCard

import linearpatch as lp
from linearpatch.choices import choice_made, choices, component_of
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ConfigError, DataError, ModelError, StorageError
from linearpatch.models.edit import Edit
from linearpatch.models.origins import Origin, remember_origin
from linearpatch.models.random import byte_tokenizer
from linearpatch.overrides import override
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import resolve

WORDS = ["a ruler", "two seas", "old maps", "new roads", "tall trees", "cold rain", "late trains"]
TEXT = [f"{index}: {WORDS[index % 7]} and {WORDS[index % 5]} near {index * index}." for index in range(600)]
SETTINGS = {"lstsq": {"ridge": 0.1}, "mlp_lstsq": {"ridge": 0.1}, "refit": {"ridge": 0.1}}


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def data(tokenizer):
    return lp.tokens(TEXT, tokenizer, blocks=24, length=64)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25)[None], use_cache=False).logits


def test_from_a_model_in_memory_to_a_saved_one(model, tokenizer, data, tmp_path):
    before = logits_of(model)
    model.train()
    model.requires_grad_(True)
    edit = lp.prune(model, data, num_layers=3)
    edit = lp.repair(model, edit, data, patch="lstsq", bias=True)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    small = edit.apply(model)
    assert len(edit.removed_layers) == 3
    assert small.config.num_hidden_layers == NUM_LAYERS - 3
    lp.save(tmp_path / "small", model, tokenizer, edit)
    assert torch.equal(logits_of(lp.load(tmp_path / "small")), logits_of(small))
    lp.save(tmp_path / "adapter", model, tokenizer, edit, save_format="adapter")
    assert torch.equal(logits_of(lp.apply(model, tmp_path / "adapter")), logits_of(small))
    assert torch.equal(logits_of(model), before)
    value = lp.perplexity(small, tokenizer, TEXT, length=64, blocks=4)
    assert value > 1
    assert lp.evaluate(small, tokenizer, "ppl", TEXT, seq_len=64, num_blocks=4)["ppl/text"].value == value
    with pytest.raises(StorageError, match="isn't a checkpoint of this package"):
        lp.save(tmp_path, model, tokenizer, edit)


def test_a_patch_before_the_final_norm_is_measured(model, tokenizer, data):
    edit = lp.prune(model, data, num_layers=2, pruner="tail", protect_last=0)
    small = lp.repair(model, edit, data, patch="scalar", compare=False).apply(model)
    value = lp.perplexity(small, tokenizer, TEXT, length=64, blocks=4)
    ids = lp.tokens(TEXT, tokenizer, blocks=4, length=64, sampling="first", held_out=0).blocks.ids
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(small(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert value == pytest.approx(losses.exp().item(), rel=1e-4)


def test_held_out_tokens_may_hold_copies(tokenizer):
    plain, copied = (lp.tokens(TEXT, tokenizer, 8, 64, held_out=4, copies=number) for number in (0, 2))
    assert torch.equal(copied.blocks.ids, plain.blocks.ids)
    assert copied.held_out.hash == plain.held_out.with_copies(2).hash


@pytest.mark.parametrize("held_out", [0, 1])
def test_copies_need_blocks_that_are_held_out(tokenizer, held_out):
    with pytest.raises(ConfigError, match=f"at most held_out, which is {held_out}"):
        lp.tokens(TEXT, tokenizer, 8, 64, held_out=held_out, copies=2)


def test_functions_do_what_a_run_does(tmp_path, monkeypatch):
    """The same tokens, layers and operators as `linearpatch run` of the same settings."""
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))
    words = ["model=random", "debug=tiny", "pruner=shortgpt", "patch=lstsq", "patch.ridge=0.01", "patch.compare=false"]
    words += ["num_pruned_layers=3", "calibration.held_out_blocks=2"]
    record = lp.run(*words, f"output_dir={tmp_path}/D", folder=tmp_path / "D")
    experiment = lp.compose(*words)
    model, tokenizer = lp.load_model("random")
    assert record.status == "completed"
    spec = experiment.calibration
    data = lp.tokens(
        experiment.calibration_reader.open().documents, tokenizer, spec.num_blocks, spec.block_length, held_out=2
    )
    assert data.blocks.hash == record.calibration.token_hash
    assert data.held_out.hash == record.calibration.held_out["token_hash"]
    edit = lp.prune(model, data, 3, pruner="shortgpt", protect_first=0)
    assert list(edit.removed_layers) == record.pruning.removed_layers
    edit = lp.repair(model, edit, data, patch="lstsq", ridge=0.01, compare=False)
    found = edit.operators[0].diagnostics
    assert found["error_before"] == pytest.approx(record.patch.sites[0].error_before, rel=1e-6)


def test_a_run_from_python_leaves_its_log_and_its_command(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))
    level = logging.getLogger("linearpatch").level
    words = ["model=random", "debug=tiny", "patch=lstsq", "num_pruned_layers=2", f"output_dir={tmp_path}/my run"]
    with caplog.at_level(logging.WARNING):
        record = lp.run(*words)
    assert record.command == shlex.join(["linearpatch", "run", *words])
    assert "INFO linearpatch.models.model: loaded LlamaForCausalLM" in (tmp_path / "my run" / "run.log").read_text()
    assert {entry.levelname for entry in caplog.records} <= {"WARNING", "ERROR"}
    assert logging.getLogger("linearpatch").level == level


def test_a_card_names_what_the_model_was_loaded_from(model, tokenizer, data, tmp_path):
    edit = lp.prune(model, data, num_layers=2, pruner="tail")
    model.config._name_or_path = "someone/tiny"
    lp.save(tmp_path / "A", model, tokenizer, edit, license="mit")
    card = ModelCard.load(tmp_path / "A" / "README.md")
    assert (card.data.base_model, card.data.license) == ("someone/tiny", "mit")
    remember_origin(model, Origin("Tiny", "the package tiny", "someone/else", "apache-2.0"))
    lp.save(tmp_path / "B", model, tokenizer, edit)
    card = ModelCard.load(tmp_path / "B" / "README.md")
    assert (card.data.base_model, card.data.license) == ("someone/else", "apache-2.0")
    assert "# Tiny without 2 of 6 layers" in card.content


def test_text_comes_from_files_lists_chats_and_datasets(tokenizer, tmp_path):
    (tmp_path / "my.txt").write_text("\n\n".join(TEXT))
    dataset = datasets.Dataset.from_dict({"text": TEXT, "other": TEXT[::-1]})
    hashes = {
        lp.tokens(text, tokenizer, blocks=4, length=64).blocks.hash
        for text in (TEXT, tmp_path / "my.txt", str(tmp_path / "my.txt"), dataset)
    }
    assert len(hashes) == 1
    assert lp.tokens(dataset, tokenizer, 4, 64, column="other").blocks.hash not in hashes
    apart = lp.tokens(TEXT, tokenizer, blocks=4, length=64, held_out=2)
    assert (len(apart.blocks.ids), len(apart.held_out.ids)) == (4, 2)
    assert lp.tokens(TEXT, tokenizer, blocks=4, length=64, held_out=0).held_out is None
    whole = lp.tokens(TEXT, tokenizer, blocks=None, length=64)
    assert len(whole.blocks.ids) > 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (7, "of the type int"),
        ([], "text is empty"),
        ([None, "  "], "text is empty"),
        ([b"a"], r"row 1.*bytes"),
        ([["a"]], "where text was expected"),
        ("nowhere.txt", r"text is 'nowhere.txt', and there is no such file.*Pass a text itself in a list"),
        ("A text, not a path. " * 300, r"text is 'A text, not a path\. .*…', and there is no such file"),
        (datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]})), "a DatasetDict of train. Pass one"),
        (datasets.Dataset.from_dict({"txt": ["a"]}), "has no column 'text'. Did you mean 'txt'?"),
        (["short"], "has 5 tokens: too few for one block of 32. Use a longer text"),
    ],
)
def test_what_is_no_text_is_rejected(tokenizer, text, words):
    with pytest.raises(DataError, match=words):
        lp.tokens(text, tokenizer, blocks=4, length=64)


def test_components_come_by_name_or_as_they_are(model, data):
    assert lp.prune(model, data, 2, pruner="tail").removed_layers == (NUM_LAYERS - 2, NUM_LAYERS - 3)
    by_name = lp.prune(model, data, 2, pruner="patch_aware", search="greedy", patch="lstsq")
    settings = {"protect_first": 1, "draft_share": 0.25, "finalists": 3}  # of its YAML
    itself = lp.prune(model, data, 2, pruner=lp.pruners.PatchAware(search="greedy", **settings), patch="lstsq")
    assert by_name.removed_layers == itself.removed_layers
    edit = lp.repair(model, by_name, data, patch=lp.patches.Rotate())
    assert [placed.site.interface for placed in edit.operators] == edit.interfaces


@pytest.mark.parametrize("group", ["pruner", "patch", "distill"])
def test_a_name_means_in_python_what_it_means_on_the_command_line(group):
    others = ["patch=none"] if group == "pruner" else []  # which every pruner goes with
    for name in choices(group):
        component, settings = component_of(group, name)
        counted = ["num_pruned=2"] if settings.get("unit", "layer") != "layer" else []
        composed = getattr(lp.compose(f"{group}={name}", *others, *counted), group)
        resolved = resolve(group, component, object, settings)
        assert resolved == composed, name
        assert choice_made(group, resolved) == name


@dataclass(frozen=True)
class EverySecond(Pruner):
    """It chooses among half of the layers, and doesn't ask whether these are enough."""

    def select(self, workspace, n):
        return Edit.of_layers(range(0, workspace.num_layers, 2)[:n])


@pytest.mark.parametrize(
    "wrong", ["random", None, torch.nn.Linear(2, 2), ("model", "tokenizer"), byte_tokenizer()], ids=type
)
@pytest.mark.parametrize(
    "call",
    [
        lambda wrong, data: lp.prune(wrong, data, 2),
        lambda wrong, data: lp.repair(wrong, Edit.of_layers([2]), data),
        lambda wrong, data: lp.distill(wrong, Edit.of_layers([2]), data),
        lambda wrong, data: lp.perplexity(wrong, byte_tokenizer(), TEXT),
        lambda wrong, data: lp.generate_texts(wrong, byte_tokenizer()),
        lambda wrong, data: lp.save("S", wrong, byte_tokenizer(), Edit()),
        lambda wrong, data: Edit.of_layers([2]).apply(wrong),
    ],
)
def test_what_is_no_model_is_rejected_everywhere(call, wrong, data):
    with pytest.raises(ModelError, match=f"model is a {type(wrong).__name__}. Allowed: a causal language model"):
        call(wrong, data)


@pytest.mark.parametrize("patch", ["rotate", "diag", "lstsq", "mlp_lstsq", "mlp_refit", "refit", "block", "mlp", "nbl"])
def test_an_edit_of_a_model_of_another_width_is_rejected(patch, model, data):
    wider = tiny_model(hidden_size=64)
    edit = lp.repair(model, Edit.of_layers([3, 4]), data, patch=patch, **SETTINGS.get(patch, {}))
    with pytest.raises(ModelError, match="isn't the model that this edit was made for"):
        edit.apply(wider)


def test_tokens_beyond_the_vocabulary_are_rejected(model):
    beyond = lp.Tokens(TokenBlocks(torch.full((2, 64), 10_000), "test"))
    edit = Edit.of_layers([2])
    for call in (lambda: lp.prune(model, beyond, 2), lambda: lp.repair(model, edit, beyond, patch="lstsq")):
        with pytest.raises(ModelError, match="data holds the token 10,000, and the embedding"):
            call()


def test_dtypes_and_paths_are_values_of_settings():
    model, _ = lp.load_model("random", dtype=torch.bfloat16, device=torch.device("cpu"))
    assert model.dtype == torch.bfloat16
    assert override("corpus.path", Path("texts/my.txt")) == override("corpus.path", "texts/my.txt")


def test_names_can_be_completed(model, data):
    assert {"prune", "repair", "run_sweep"} <= set(dir(lp))
    assert {"PatchAware", "Sleb"} <= set(dir(lp.pruners))
    assert "Refit" in dir(lp.patches)
    edit = lp.repair(model, Edit.of_layers([3, 4]), data, patch="rotate")
    assert repr(edit) == "Edit(removed layers [3, 4]: interfaces [3, 5); 1 operator)"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, d: lp.prune(m, d, 2, pruner="slebb"), "pruner=slebb is not a choice. Did you mean 'sleb'?"),
        (lambda m, d: lp.prune(m, d, 2, pruner="sleb", stop_erly=True), "has no setting 'stop_erly'. Did you mean"),
        (lambda m, d: lp.prune(m, d, 2, pruner="sleb", protect_first=-1), "protect_first is -1"),
        (lambda m, d: lp.prune(m, d, 2, pruner=lp.patches.Rotate()), "pruner is a Rotate"),
        (lambda m, d: lp.prune(m, d, 99), "num_layers is 99"),
        (lambda m, d: lp.repair(m, lp.prune(m, d, 1, pruner="tail"), d, patch="rotat"), "Did you mean 'rotate'?"),
        (lambda m, d: lp.repair(m, None, d), "edit is a NoneType"),
        (lambda m, d: lp.distill(m, lp.prune(m, d, 1, pruner="tail"), d, loss="none"), "distill=none does nothing"),
        (lambda m, d: lp.pruners.PatchAwar, "Did you mean 'PatchAware'?"),
        (lambda m, d: lp.prunr, "no attribute 'prunr'. Did you mean 'prune'?"),
        (lambda m, d: lp.prune(m, d, 2, pruner=lp.pruners.ShortGPT), r"is the class ShortGPT. Create .* ShortGPT\(\)"),
        (lambda m, d: lp.prune(m, d, 2, pruner=lp.pruners.Tail(), bogus=1), "has no setting 'bogus'. Allowed: "),
        (lambda m, d: lp.prune(m, d, 5, pruner=EverySecond()), r"chose 3 layers \(0, 2, 4\), and 5 were"),
        (lambda m, d: lp.tokens(TEXT, "byte"), "tokenizer is a str. Allowed: a tokenizer of transformers"),
        (lambda m, d: lp.tokens(TEXT, byte_tokenizer(), blocks=0), "blocks is 0. Allowed: at least 1"),
        (lambda m, d: lp.tokens(TEXT, byte_tokenizer(), held_out=-1), "held_out is -1. Allowed: at least 0"),
        (lambda m, d: lp.perplexity(m, None, TEXT), "tokenizer is a NoneType"),
        (lambda m, d: lp.save("S", m, None, Edit()), "tokenizer is a NoneType"),
        (lambda m, d: lp.save(m, "S", byte_tokenizer(), Edit()), "folder is a LlamaForCausalLM"),
        (lambda m, d: lp.run(["model=random"]), r"An override is a list.*run\(\*overrides\)"),
        (lambda m, d: lp.run("-m", "model=random"), "is an option of the command line. For a sweep use run_sweep"),
        (lambda m, d: lp.run("patch=none,lstsq"), "in Python: linearpatch.run_sweep"),
    ],
)
def test_mistakes_are_sentences(model, data, call, words):
    with pytest.raises((ConfigError, AttributeError), match=words):
        call(model, data)


def test_distillation_improves_the_held_out_loss(model, tokenizer, data):
    edit = lp.repair(model, lp.prune(model, data, 2, pruner="tail"), data, patch="rotate")
    trained = lp.distill(model, edit, data, learning_rate=1e-2, validations=2)
    assert trained.removed_layers == edit.removed_layers
    assert [placed.place for placed in trained.operators] == [placed.place for placed in edit.operators]
    assert not torch.equal(trained.operators[0].module.weight, edit.operators[0].module.weight)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_text_without_tokens_to_spare_is_said(tokenizer, model):
    data = lp.tokens(["x" * 100], tokenizer, blocks=1, length=64)
    assert data.held_out is None
    with pytest.raises(ConfigError, match="held out"):
        lp.distill(model, lp.prune(model, data, 1, pruner="tail"), data)


def test_padding_in_the_text_is_a_warning(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        lp.tokens([text + "\0" * 500 for text in TEXT[:100]], tokenizer, blocks=8, length=64)
    assert "only repeat the tokens before them" in caplog.text


@pytest.mark.parametrize("module", ["torch", "hydra", "wandb", "transformers"])
def test_importing_the_package_imports_nothing_heavy(module):
    program = f"import sys, linearpatch; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_using_the_functions_needs_neither_hydra_nor_wandb():
    program = (
        "import sys, linearpatch as lp; lp.prune, lp.pruners.Sleb; sys.exit(bool({'hydra', 'wandb'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_a_sweep_gives_its_records(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))
    records = lp.run_sweep(
        "model=random", "debug=tiny", "tracker=none", "num_pruned_layers=2", "pruner=tail,random", "patch=none",
        f"output_dir={tmp_path}/S",
    )  # fmt: skip
    assert [record.status for record in records] == ["completed", "completed"]


def test_an_evaluation_is_a_choice_of_the_configuration():
    model, tokenizer = lp.load_model("random")
    found = lp.evaluate(model, tokenizer, "smoke", limit=2)
    assert {"smoke/facts/acc", "smoke/acc"} <= set(found)
    assert found["smoke/acc"].n == 8
    with pytest.raises(ConfigError, match="Did you mean 'smoke'"):
        lp.evaluate(model, tokenizer, "smokee")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, tokenizer, data: lp.tokens("a " * 999, tokenizer, blocks="8"), "blocks is '8'"),
        (lambda model, tokenizer, data: lp.prune(model, data, num_layers=3.0), "num_layers is 3.0"),
        (lambda model, tokenizer, data: lp.prune(model, data, num_layers=True), "num_layers is True"),
        (lambda model, tokenizer, data: lp.prune(model, ["text"], num_layers=2), "data is a list"),
        (
            lambda model, tokenizer, data: lp.repair(model, Edit.of_layers([2]), data, patch="lstsq", bias="maybe"),
            "patch=lstsq: bias is 'maybe'",
        ),
        (
            lambda model, tokenizer, data: lp.repair(model, Edit.of_layers([2]), data, patch="lstsq", ridge=-1),
            "^ridge is -1",
        ),
        (lambda model, tokenizer, data: lp.repair(model, Edit.of_layers([40]), data), r"Layers \[40\] don't exist"),
    ],
)
def test_a_value_of_another_type_is_a_sentence(call, message):
    model, tokenizer = lp.load_model("random")
    data = lp.Tokens(TokenBlocks(torch.randint(3, 250, (2, 16)), "test"))
    with pytest.raises(ConfigError, match=message):
        call(model, tokenizer, data)


@pytest.mark.slow
def test_a_sweep_does_not_run_the_script_that_started_it(tmp_path, session_cache):
    script = tmp_path / "script.py"
    words = [
        "debug=tiny",
        "model=random",
        "tracker=none",
        "num_pruned_layers=2",
        "patch=none",
        f"output_dir={tmp_path}/D",
    ]
    script.write_text(
        f"print('begins')\nimport linearpatch as lp\nprint([one.status for one in lp.run_sweep(*{words!r})])\n"
    )
    environment = {**os.environ, "LINEARPATCH_CACHE": str(session_cache)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "begins"
    assert done.stdout.count("begins") == 1
    assert "['completed']" in done.stdout
