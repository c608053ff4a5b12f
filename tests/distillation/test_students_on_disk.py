"""Students whose layers are on disk or spread over devices train as those in one piece do."""

from dataclasses import replace

import pytest
import torch
from conftest import NUM_LAYERS
from edits import edit_of, on_stream
from offloading import dense, on_disk
from test_loop import TEXT, VALIDATION, validation_losses
from transformers import AutoModelForCausalLM

from linearpatch.distillation.distill import distill
from linearpatch.distillation.feature_mse import FeatureMSE
from linearpatch.distillation.full_kl import FullKL
from linearpatch.distillation.language_model import LanguageModel
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.distillation.patch_forms import FullPatch
from linearpatch.distillation.stream_mse import StreamMSE
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.offload import device_of, is_offloaded
from linearpatch.models.passes import record
from linearpatch.models.runner import Runner

pytest.importorskip("accelerate")
COMMON = {"learning_rate": 3e-3, "batch_size": 2, "validations": 3, "checkpoint_minutes": None}
LOSSES = [
    OutputKL(top_k=20, **COMMON),
    FullKL(**COMMON),
    LanguageModel(**COMMON),
    FeatureMSE(**COMMON),
    StreamMSE(**COMMON),
]
MATRIX = torch.eye(32) + 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(5))
EDIT = edit_of([2, 3], [(on_stream(2, 4), LinearMap(MATRIX))])


def outcome(training, model):
    distilled = distill(training, decoder_of(model), EDIT, TEXT, VALIDATION)
    assert distilled.best_step > 0
    return validation_losses(distilled), [placed.module.weight for placed in distilled.edit.operators]


@pytest.mark.parametrize("training", LOSSES, ids=lambda training: type(training).__name__)
def test_a_patch_trains_in_a_model_on_disk(training, tmp_path):
    losses, weights = outcome(training, dense("llama", tmp_path))
    offloaded_losses, offloaded_weights = outcome(training, on_disk("llama", tmp_path))
    assert offloaded_losses == pytest.approx(losses, rel=1e-5)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(offloaded_weights, weights, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable": "lora", "lora_rank": 4, "lora_layers": "after_interface"},
        {"trainable": "neighbours", "side": "after"},
    ],
)
def test_weights_train_behind_layers_on_disk(settings, tmp_path):
    training = replace(LOSSES[0], **settings)
    expected, _ = outcome(training, dense("llama", tmp_path))
    found, _ = outcome(training, on_disk("llama", tmp_path, layers_on_disk=range(4)))
    assert found == pytest.approx(expected, rel=1e-5)


def test_weights_on_disk_are_not_trained(tmp_path):
    dense("llama", tmp_path)
    training = replace(LOSSES[0], trainable="lora", lora_rank=4)
    with pytest.raises(ConfigError, match=r"layer 0 is kept in CPU memory or on disk.*distill.trainable=patch"):
        distill(training, decoder_of(on_disk("llama", tmp_path)), EDIT, TEXT, VALIDATION)


def test_layers_on_disk_leave_nothing_of_their_weights_in_the_graph(tmp_path):
    dense("llama", tmp_path)
    decoder = decoder_of(on_disk("llama", tmp_path))
    kept = []
    patch = FullPatch(MATRIX, None, around_start=False)
    student = Runner(decoder, edit_of([2, 3], [(on_stream(2, 4), patch)]))
    recording = record(decoder, TEXT.ids[:1], [2, NUM_LAYERS])

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        student.run(recording.streams[2], recording.calls).sum().backward()
    assert patch.moved["matrix"].grad.abs().max() > 0
    weights = {tuple(weight.shape) for weight in decoder.layers[4].parameters()} - {tuple(MATRIX.shape)}
    assert kept
    assert not weights & {tuple(tensor.shape) for tensor in kept}


def test_where_a_module_computes(tmp_path):
    whole = dense("llama", tmp_path)
    offloaded = on_disk("llama", tmp_path, layers_on_disk=(1,))
    assert not is_offloaded(whole.model.layers[1])
    assert is_offloaded(offloaded.model.layers[1])
    assert not is_offloaded(offloaded.model.layers[2])
    assert {device_of(layer) for layer in offloaded.model.layers} == {torch.device("cpu")}
    assert decoder_of(offloaded).reading_device(NUM_LAYERS) == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("training", LOSSES, ids=lambda training: type(training).__name__)
def test_a_patch_trains_on_gpu_and_cpu_as_on_one_device(training, tmp_path):
    losses, _ = outcome(training, dense("llama", tmp_path).cuda())
    device_map = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 0, "lm_head": 0}
    device_map |= {f"model.layers.{i}": 0 if i < 3 else "cpu" for i in range(NUM_LAYERS)}
    spread = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", device_map=device_map)
    assert outcome(training, spread)[0] == pytest.approx(losses, rel=1e-5)
