"""What a layer adds to the stream, for every family: the difference between its output and its input."""

import pytest
import torch
from conftest import FAMILIES, tiny_model
from torch import nn

from linearpatch.errors import ModelError
from linearpatch.models.decoder import decoder_of, unwrap
from linearpatch.models.passes import mlp_outputs, record
from linearpatch.models.writers import mlp_writer, writers_of

TOKENS = torch.randint(3, 300, (2, 14), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_outputs_of_both_writers_are_what_the_layer_adds(family):
    decoder = decoder_of(tiny_model(family))
    writers = writers_of(decoder.layers[2])
    outputs = []
    for writer in (writers.attention, writers.mlp):
        # A copy: Falcon adds one branch to the other in place.
        writer.register_forward_hook(lambda _, __, output: outputs.append(unwrap(output).clone()))
    streams = record(decoder, TOKENS).streams
    added = sum(output.view_as(streams[2]) for output in outputs) * decoder.residual_multiplier
    assert len(outputs) == 2
    assert torch.allclose(streams[3] - streams[2], added, atol=1e-4 * streams[3].abs().max())
    assert writers.normed == (family in ("gemma2", "gemma3_text"))


def test_mlp_outputs_include_what_the_family_multiplies_them_by():
    decoder = decoder_of(tiny_model("granite"))
    kept = []
    mlp_writer(decoder.layers[3]).register_forward_hook(lambda _, __, output: kept.append(output))
    with mlp_outputs(decoder, [3]) as added:
        record(decoder, TOKENS)
    assert torch.allclose(added[3], 0.7 * kept[0])
    with mlp_outputs(decoder, [3]):
        pass
    record(decoder, TOKENS)
    assert torch.allclose(added[3], 0.7 * kept[0])  # the hook has gone


def test_unknown_layers_are_refused():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = nn.Linear(4, 4)

    with pytest.raises(ModelError, match=r"Strange adds to the stream .* \(its parts: mixer\)"):
        writers_of(Strange())


def test_norms_behind_branches_that_read_the_bare_stream_are_refused():
    layer = tiny_model().model.layers[0]
    layer.post_feedforward_layernorm = nn.LayerNorm(32)  # as in OLMo 2
    with pytest.raises(ModelError, match="adds to the stream in a way"):
        writers_of(layer)
