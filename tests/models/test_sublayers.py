"""Sublayers found by what a layer adds to the stream, for every family."""

import pytest
import torch
from conftest import FAMILIES, tiny_model
from edits import view_of
from torch import nn

from linearpatch.errors import ModelError
from linearpatch.models.decoder import decoder_of, unwrap
from linearpatch.models.passes import mlp_outputs, projection_inputs, record
from linearpatch.models.places import InProjection, OnOutput
from linearpatch.models.sublayers import sublayers_of
from linearpatch.models.units import Unit

TOKENS = torch.randint(3, 300, (2, 14), generator=torch.Generator().manual_seed(3))
NORMED = ("gemma2", "gemma3_text")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_outputs_of_both_sublayers_are_what_the_layer_adds(family, dtype):
    decoder = decoder_of(tiny_model(family))
    sublayers = [sublayers_of(decoder, index) for index in range(decoder.num_layers)]
    half = decoder_of(tiny_model(family).to(dtype))
    for index, expected in enumerate(sublayers):
        found = sublayers_of(half, index)
        for one, other in ((found.attention, expected.attention), (found.mlp, expected.mlp)):
            assert name_of(half, one.output) == name_of(decoder, other.output)
            assert one.multiplier == pytest.approx(other.multiplier, rel=1e-2)
    outputs = []
    for sublayer in (sublayers[2].attention, sublayers[2].mlp):
        # A copy: Falcon adds one output to the other in place.
        sublayer.output.register_forward_hook(lambda _, __, output: outputs.append(unwrap(output).clone()))
    streams = record(decoder, TOKENS).streams
    added = sum(output.view_as(streams[2]) for output in outputs) * sublayers[2].mlp.multiplier
    assert len(outputs) == 2
    assert torch.allclose(streams[3] - streams[2], added, atol=1e-4 * streams[3].abs().max())
    assert sublayers[2].mlp.is_norm == (family in NORMED)
    assert (sublayers[2].mlp.projection is None) == (family in (*NORMED, "qwen3_moe"))
    assert sublayers[2].mlp.multiplier == (0.7 if family == "granite" else 1)


def name_of(decoder, module):
    return next(name for name, one in decoder.model.named_modules() if one is module)


def test_a_view_knows_the_sublayers_of_its_own_layers():
    decoder = decoder_of(tiny_model())
    sublayers_of(decoder, 0)
    view = decoder_of(view_of(decoder, [1, 2]))
    assert sublayers_of(view, 1).mlp.output is view.layers[1].mlp.down_proj
    assert view.layers[1].mlp.down_proj is not decoder.layers[3].mlp.down_proj


def test_outputs_and_inputs_include_what_the_family_multiplies_them_by():
    decoder = decoder_of(tiny_model("granite"))
    projection = InProjection.projection_of(decoder, 3)
    wrote, read = [], []

    def keep(_, inputs, output):
        read.append(inputs[0])
        wrote.append(output)

    projection.module.register_forward_hook(keep)
    with mlp_outputs(decoder, [3]) as added, projection_inputs(decoder, [Unit(3, "mlp")]) as seen:
        record(decoder, TOKENS)
    assert torch.allclose(added[3], 0.7 * wrote[0])
    assert torch.allclose(seen[Unit(3, "mlp")], 0.7 * read[0])
    record(decoder, TOKENS)
    assert torch.allclose(added[3], 0.7 * wrote[0])  # the hooks were removed


def test_layers_that_add_something_else_are_rejected():
    class Strange(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, hidden, **more):
            return 2 * self.layer(hidden, **more)

    model = tiny_model()
    model.model.layers[2] = Strange(model.model.layers[2])
    decoder = decoder_of(model)
    with pytest.raises(ModelError, match=r"Strange adds to the stream .* \(its parts: layer\)"):
        sublayers_of(decoder, 2)
    assert sublayers_of(decoder, 3).mlp.projection is model.model.layers[3].mlp.down_proj


def test_a_norm_has_no_output_projection_and_a_mixture_of_experts_several():
    for family in NORMED:
        with pytest.raises(ModelError, match="normalises its MLP's output"):
            OnOutput.output_of(decoder_of(tiny_model(family)), 1)
    decoder = decoder_of(tiny_model("qwen3_moe"))
    (weight,) = InProjection.projection_of(decoder, 1).weights
    assert weight.module.get_parameter(weight.name) is decoder.layers[1].mlp.experts.down_proj
