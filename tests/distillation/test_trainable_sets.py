"""What trains beside the patches: which weights, with the plain procedure's gradients, and what they become."""

import copy
import os
import signal
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from edits import edit_of, in_projection, on_stream
from test_loop import TEXT, VALIDATION, validation_losses
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from linearpatch.distillation import distill as module
from linearpatch.distillation.distill import distill
from linearpatch.distillation.feature_mse import FeatureMSE
from linearpatch.distillation.full_kl import FullKL
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.distillation.patch_forms import FullPatch
from linearpatch.distillation.sources import Online
from linearpatch.distillation.stream_mse import StreamMSE
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.passes import record
from linearpatch.models.runner import Runner
from linearpatch.models.weight_changes import LowRankUpdate, NewWeight, ParameterName
from linearpatch.runtime.signals import Terminated
from linearpatch.storage.cache import Cache

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
SIZE = 32
SETTINGS = {
    "lora": {"trainable": "lora", "lora_rank": 4},
    "lora behind": {"trainable": "lora", "lora_rank": 4, "lora_layers": "after_interface"},
    "lora targets": {"trainable": "lora", "lora_rank": 2, "lora_alpha": 3, "lora_targets": ["q_proj", "down_proj"]},
    "norms": {"trainable": "norms"},
    "neighbours": {"trainable": "neighbours"},
    "last_layers": {"trainable": "last_layers", "last_layers": 2},
    "all": {"trainable": "all"},
}
FEW = {name: SETTINGS[name] for name in ("lora", "norms", "all")}
TRAINING = OutputKL(top_k=20, learning_rate=3e-3, batch_size=2, validations=3, checkpoint_minutes=None)


def matrix():
    generator = torch.Generator().manual_seed(1)
    return torch.eye(SIZE) + 0.1 * torch.randn(SIZE, SIZE, generator=generator)


def student_of(training, decoder, removed=(2, 3), *, moved=True):
    """A student whose LoRA updates aren't zero any more, so that all of their parameters have gradients."""
    patch = FullPatch(matrix().double(), None, around_start=False).double()
    edit = edit_of(removed, [(on_stream(removed[0], removed[-1] + 1), patch)])
    weights = training.trainable_set.weights(decoder, edit, seed=0)
    generator = torch.Generator().manual_seed(2)
    for change in weights.values():
        if moved and isinstance(change, LowRankUpdate):
            with torch.no_grad():
                change.up.add_(0.1 * torch.randn(change.up.shape, generator=generator).double())
    return Runner(decoder, edit.with_weights(weights), training.recompute)


def loss_of(training, student):
    return training.loss(student, Online(training, student, IDS).lesson([0, 1]))


def path_in_pruned(decoder, removed, name):
    """The name of a parameter in a model without some layers."""
    kept = [layer for layer in range(decoder.num_layers) if layer not in removed]
    if name.layer < decoder.num_layers:
        return f"{decoder.parts.layers}.{kept.index(name.layer)}.{name.name}"
    role, _, leaf = name.name.partition(".")
    owner = decoder.final_norm if role == "final_norm" else decoder.head
    return next(path for path, module in decoder.model.named_modules() if module is owner) + f".{leaf}"


def plain_loss(training, model, student, removed=(2, 3)):
    """The published way: a whole second model with layers deleted, all logits, everything in one graph; its leaves."""
    decoder = student.decoder
    pruned = copy.deepcopy(model)
    owner, _, name = decoder.parts.layers.rpartition(".")
    layers = pruned.get_submodule(decoder.parts.layers)
    kept = [layer for index, layer in enumerate(layers) if index not in removed]
    setattr(pruned.get_submodule(owner), name, torch.nn.ModuleList(kept))
    pruned.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        pruned.config.layer_types = [
            kind for index, kind in enumerate(model.config.layer_types) if index not in removed
        ]
    patch = matrix().double().requires_grad_()
    kept[removed[0]].register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0] @ patch, *args[1:]), kwargs), with_kwargs=True
    )
    leaves, values = [], {}
    own = dict(pruned.named_parameters())
    for name, change in student.edit.weights.items():
        path = path_in_pruned(decoder, removed, name)
        if isinstance(change, NewWeight):
            leaf = own[path].detach().clone().requires_grad_()
            leaves.append([leaf])
            values[path] = leaf
        else:
            down, up = (values.detach().clone().requires_grad_() for values in (change.down, change.up))
            leaves.append([down, up])
            added = training.lora_alpha / training.lora_rank * up @ down
            values[path] = own[path] + (added.T if change.transposed else added)
    logits = functional_call(pruned, values, (), {"input_ids": IDS, "use_cache": False}).logits
    with torch.no_grad():
        taught = model(input_ids=IDS, use_cache=False).logits
    if isinstance(training, OutputKL):
        likeliest = taught.topk(training.top_k, dim=-1)
        taught, logits = likeliest.values, logits.gather(-1, likeliest.indices)
    teacher = taught.softmax(dim=-1)
    if isinstance(training, OutputKL):
        teacher = teacher.half().double() / teacher.half().double().sum(dim=-1, keepdim=True)
    loss = (teacher * (teacher.log() - logits.log_softmax(dim=-1))).sum(dim=-1).mean()
    loss.backward()
    return loss, patch.grad, [[leaf.grad for leaf in group] for group in leaves]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_losses_and_gradients_are_the_plain_ones(settings, recompute):
    model = tiny_model().double()
    training = OutputKL(top_k=20, recompute=recompute, **settings)
    compare(training, model)


@pytest.mark.parametrize("settings", FEW.values(), ids=FEW)
@pytest.mark.parametrize("family", ["gemma2", "granite", "gpt2", "gpt_neox", "qwen2"])
def test_of_other_families_as_well(family, settings):
    if family == "gpt2":
        sizes = {"n_embd": SIZE, "n_layer": 6, "n_head": 4, "n_inner": 48, "n_positions": 64}
        model = tiny_model(family, **sizes, **dict.fromkeys(("hidden_size", "num_hidden_layers", "intermediate_size")))
    else:
        model = tiny_model(family)
    compare(FullKL(**settings), model.double())


def compare(training, model):
    student = student_of(training, decoder_of(model))
    loss = loss_of(training, student)
    loss.backward()
    expected, patch_gradient, gradients = plain_loss(training, model, student)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    patch = student.edit.operators[0].module.moved["matrix"]
    assert torch.allclose(patch.grad, patch_gradient, atol=1e-6 * patch_gradient.abs().max())
    for (name, change), expected_gradients in zip(student.edit.weights.items(), gradients, strict=True):
        for parameter, gradient in zip(change.parameters(), expected_gradients, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-6 * gradient.abs().max() + 1e-12), name
    assert any(
        parameter.grad.abs().max() > 0 for one in student.edit.weights.values() for parameter in one.parameters()
    )


def test_the_dense_pass_is_shared_up_to_what_trains():
    decoder = decoder_of(tiny_model().double())
    entries = {name: student_of(OutputKL(top_k=5, **settings), decoder).entry for name, settings in SETTINGS.items()}
    shared = {"lora behind": 2, "last_layers": 2, "neighbours": 1}
    assert entries == {name: shared.get(name, 0) for name in SETTINGS}


def test_which_weights_these_are():
    decoder = decoder_of(tiny_model())
    edit = edit_of((1, 3))

    def of(**settings):
        return OutputKL(top_k=5, **settings).trainable_set.names(decoder, edit)

    assert {name.layer for name in of(trainable="neighbours")} == {0, 2, 4}
    assert {name.layer for name in of(trainable="neighbours", radius=2)} == {0, 2, 4, 5}
    assert {name.layer for name in of(trainable="neighbours", side="before")} == {0, 2}
    assert {name.layer for name in of(trainable="neighbours", side="after")} == {2, 4}
    assert {name.layer for name in of(trainable="last_layers", last_layers=2)} == {4, 5, 6}
    assert {name.layer for name in of(trainable="lora", lora_layers="after_interface")} == {2, 4, 5}
    assert all("norm" in name.name for name in of(trainable="norms"))
    assert ParameterName(6, "head.weight") in of(trainable="all")
    total = sum(p.numel() for p in decoder.model.parameters())
    outside = sum(p.numel() for i in (1, 3) for p in decoder.layers[i].parameters())
    outside += sum(p.numel() for p in decoder.model.get_input_embeddings().parameters())
    names = of(trainable="all")
    numbers = [name.owner(decoder)[0].get_parameter(name.owner(decoder)[1]).numel() for name in names]
    assert sum(numbers) == total - outside


def test_a_head_tied_to_the_embeddings_stays():
    model = tiny_model(tie_word_embeddings=True)
    decoder = decoder_of(model)
    for trainable in ("all", "last_layers"):
        names = OutputKL(top_k=5, trainable=trainable).trainable_set.names(decoder, edit_of((2,)))
        assert not any(name.name.startswith("head") for name in names)


def train(training, *, decoder=None, removed=(2, 3), operators=None, **settings):
    decoder = decoder or decoder_of(tiny_model())
    operators = [(on_stream(2, 4, 4), LinearMap(torch.eye(SIZE)))] if operators is None else operators
    return distill(training, decoder, edit_of(removed, operators), TEXT, VALIDATION, **settings)


def values_of(distilled):
    modules = [*(placed.module for placed in distilled.edit.operators), *distilled.edit.weights.values()]
    return [parameter for one in modules for parameter in one.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_more_than_the_patch_pays(settings, dtype):
    decoder = decoder_of(tiny_model().to(dtype))
    patch = train(replace(TRAINING, epochs=3), decoder=decoder)
    found = train(replace(TRAINING, epochs=3, **settings), decoder=decoder)
    losses = validation_losses(found)
    assert losses[0] == pytest.approx(validation_losses(patch)[0], rel=1e-6)
    assert min(losses) < min(validation_losses(patch))
    assert all(one.dtype == torch.float32 for one in values_of(found))
    assert not any(one.requires_grad for one in values_of(found))
    view = decoder_of(found.edit.view(decoder))
    recording = record(decoder, IDS, {0, decoder.num_layers})
    runner = Runner(decoder, found.edit.with_modules([one.module.to(dtype) for one in found.edit.operators]))
    stream = record(decoder, IDS, {runner.entry}).streams[runner.entry]
    with torch.no_grad():
        ours = runner.edited.logits(runner.edited.final_norm(runner.run(stream, recording.calls))).float()
    theirs = view.model(input_ids=IDS, use_cache=False).logits.float()
    assert torch.allclose(ours, theirs, atol=(1e-4 if dtype == torch.float32 else 5e-2) * theirs.abs().max())
    assert found.num_trained > patch.num_trained


@pytest.mark.parametrize("settings", [SETTINGS["lora"], SETTINGS["all"]], ids=["lora", "all"])
@pytest.mark.parametrize("stop_after", [1, 7])
def test_a_training_that_was_stopped_ends_as_if_it_hadnt(tmp_path, stop_after, settings):
    training = replace(TRAINING, epochs=2, **settings)
    whole = train(training)

    def stopping(point):
        if point["step"] == stop_after and "loss" in point:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated, match=f"SIGTERM after step {stop_after} of 20"):
        train(training, cache=Cache(tmp_path), report=stopping)
    again = train(training, cache=Cache(tmp_path))
    assert again.best_step == whole.best_step > stop_after
    assert all(torch.equal(one, other) for one, other in zip(values_of(again), values_of(whole), strict=True))


def test_a_finished_training_is_read_with_its_weights(tmp_path, monkeypatch):
    training = replace(TRAINING, **SETTINGS["lora"])
    first = train(training, cache=Cache(tmp_path))
    monkeypatch.setattr(module, "Loop", None)
    again = train(training, cache=Cache(tmp_path))
    assert list(again.edit.weights) == list(first.edit.weights)
    assert all(torch.equal(one, other) for one, other in zip(values_of(again), values_of(first), strict=True))
    assert again.edit.identity() == first.edit.identity()


def test_another_training_resumes_nothing(tmp_path):
    def stopping(point):
        if point["step"] == 2 and "loss" in point:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        train(replace(TRAINING, **SETTINGS["lora"]), cache=Cache(tmp_path), report=stopping)
    points = []
    other = replace(TRAINING, trainable="lora", lora_rank=3)
    train(other, cache=Cache(tmp_path), report=points.append)
    assert points[0]["step"] == 0
    assert len(list((tmp_path / "distillation_state").glob("*.safetensors"))) == 1  # that of the first, to be resumed


def test_the_layer_before_an_interface_learns_the_stream_behind_it():
    """Local repair: the layers that are trained see no other loss, and none behind the interface runs."""
    decoder = decoder_of(tiny_model())
    local = FeatureMSE(trainable="neighbours", side="before", learning_rate=1e-3, batch_size=2, epochs=3)
    found = train(local, decoder=decoder, operators=[])
    losses = validation_losses(found)
    assert min(losses) < 0.9 * losses[0]
    assert {name.layer for name in found.edit.weights} == {1}
    with pytest.raises(ConfigError, match="compares only hidden states up to"):
        train(replace(local, side="after"), decoder=decoder)


def test_layer_wise_healing_trains_every_layer():
    found = train(StreamMSE(trainable="all", learning_rate=3e-4, batch_size=2, epochs=3))
    assert min(validation_losses(found)) < 0.9 * validation_losses(found)[0]
    assert {name.layer for name in found.edit.weights} == {0, 1, 4, 5}


def test_without_a_patch_weights_train_alone():
    found = train(replace(TRAINING, trainable="all"), operators=[])
    assert min(validation_losses(found)) < validation_losses(found)[0]
    with pytest.raises(ConfigError, match=r"There is no patch to distil.*such as lora"):
        train(TRAINING, operators=[])


def test_an_operator_in_a_projection_that_lora_updates():
    decoder = decoder_of(tiny_model())
    operator = LinearMap(0.05 * torch.randn(48, SIZE, generator=torch.Generator().manual_seed(3)))
    training = replace(TRAINING, learning_rate=2e-4, epochs=2, **SETTINGS["lora"])
    found = train(training, decoder=decoder, operators=[(in_projection(2, 4), operator)])
    assert found.best_step > 0
    runner, view = Runner(decoder, found.edit), found.edit.view(decoder)
    recording = record(decoder, IDS, {0, 6})
    with torch.no_grad():
        ours = decoder.logits(decoder.final_norm(runner.run(recording.streams[0], recording.calls)))
        theirs = view(input_ids=IDS, use_cache=False).logits
    assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max())


def test_the_dense_model_doesnt_change():
    model = tiny_model().requires_grad_(True)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    modules = [type(one) for one in model.modules()]
    for settings in (SETTINGS["lora"], SETTINGS["all"]):
        train(replace(TRAINING, **settings), decoder=decoder_of(model))
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert [type(one) for one in model.modules()] == modules


def test_training_resumes_from_an_edit_that_was_trained_before():
    decoder = decoder_of(tiny_model())
    first = train(replace(TRAINING, trainable="neighbours", learning_rate=1e-3), decoder=decoder)
    assert first.best_step > 0
    again = distill(replace(TRAINING, trainable="all"), decoder, first.edit, TEXT, VALIDATION)
    assert validation_losses(again)[0] == pytest.approx(min(validation_losses(first)), rel=1e-4)
    with pytest.raises(ConfigError, match=r"was already changed.*lora_layers"):
        distill(replace(TRAINING, trainable="lora"), decoder, first.edit, TEXT, VALIDATION)


def test_what_cant_be_trained_is_rejected():
    decoder = decoder_of(tiny_model())
    lora = replace(TRAINING, trainable="lora", lora_targets=["query"])
    with pytest.raises(ConfigError, match=r"no matrix query. Allowed: some of down_proj, gate_proj, k_proj"):
        lora.check(decoder)
    behind = replace(TRAINING, trainable="lora", lora_layers="after_interface")
    with pytest.raises(ConfigError, match=r"no weights to train.*interfaces \[4, 6\)"):
        train(behind, removed=(4, 5), operators=[(on_stream(4, 6, 6), LinearMap(torch.eye(SIZE)))])
    seen = FeatureMSE(trainable="last_layers")
    with pytest.raises(ConfigError, match=r"weights from layer 4 on.*input of layer 4.*output_kl"):
        train(seen, removed=(2, 3))
    shared = tiny_model()
    shared.model.layers[4].mlp.down_proj.weight = shared.model.layers[5].mlp.down_proj.weight
    with pytest.raises(ModelError, match=r"Layers 4-5 .*share the weight mlp.down_proj.weight"):
        train(replace(TRAINING, trainable="last_layers"), decoder=decoder_of(shared))
    quantised = tiny_model()
    weight = quantised.model.layers[5].mlp.down_proj.weight
    quantised.model.layers[5].mlp.down_proj.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"down_proj.weight of layer 5 is quantised"):
        OutputKL(trainable="all").trainable_set.weights(decoder_of_unchecked(quantised, decoder), edit_of((2,)), 0)


def decoder_of_unchecked(model, like):
    """The parts of a model that can't run here."""
    return replace(like, model=model, layers=model.model.layers, final_norm=model.model.norm, head=model.lm_head)


def test_settings_that_are_not_read_are_told(caplog):
    replace(TRAINING, lora_rank=4)
    assert "distill.lora_rank=4 has no effect with distill.trainable=patch. Use distill.trainable=lora" in caplog.text


def test_an_update_of_a_transposed_weight():
    layer = Conv1D(6, 4)
    update = LowRankUpdate(torch.randn(2, 4), torch.randn(6, 2), 0.5, transposed=True)
    read = torch.randn(3, 4)
    expected = layer(read) + 0.5 * read @ update.down.T @ update.up.T
    assert torch.allclose(read @ update.value(layer.weight.detach()) + layer.bias, expected, atol=1e-5)
