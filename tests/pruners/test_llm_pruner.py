"""Width pruning: importance against autograd, the narrowed model against a masked one, its size, its checkpoint."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from small_runs import result, run
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import linearpatch
from linearpatch.calibration.comparison import repair
from linearpatch.calibration.part_importance import part_importance
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.agreement import check_logits_of
from linearpatch.models.decoder import decoder_of
from linearpatch.models.edit import Edit
from linearpatch.models.narrowing import NarrowedLayer, masked, widths_of
from linearpatch.models.rebuilding import check_removal
from linearpatch.models.runner import Runner
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.none import NoPatch
from linearpatch.pruners.llm_pruner import LlmPruner

HEADS, GROUP, SIZE, CHANNELS = 2, 2, 8, 48  # of the tiny model: two key-value heads with two query heads each
LAYERS = range(2, 5)
TOKENS = torch.arange(3, 27)[None]


def direct_importance(model, batches, kind):
    """Σ|w ∂L/∂w| of each group, or Σ of |Σ w ∂L/∂w| over its rows and columns, from one backward pass of the model."""
    heads, channels = torch.zeros(len(LAYERS), HEADS), torch.zeros(len(LAYERS), CHANNELS)

    def size(product):
        return product.abs().sum() if kind == "element" else product.sum().abs()

    for batch in batches:
        model.requires_grad_(True).zero_grad()
        logits = model(batch).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        for row, index in enumerate(LAYERS):
            layer = model.model.layers[index]
            product = {name: p.detach() * p.grad for name, p in layer.named_parameters()}
            for head in range(HEADS):
                for one in range(SIZE):
                    for name in ("k_proj", "v_proj"):
                        heads[row, head] += size(product[f"self_attn.{name}.weight"][head * SIZE + one])
                for query in range(head * GROUP, (head + 1) * GROUP):
                    for one in range(query * SIZE, (query + 1) * SIZE):
                        heads[row, head] += size(product["self_attn.q_proj.weight"][one])
                        heads[row, head] += size(product["self_attn.o_proj.weight"][:, one])
            for one in range(CHANNELS):
                channels[row, one] += size(product["mlp.gate_proj.weight"][one])
                channels[row, one] += size(product["mlp.up_proj.weight"][one])
                channels[row, one] += size(product["mlp.down_proj.weight"][:, one])
    model.requires_grad_(False)
    return heads.double(), channels.double()


@pytest.mark.parametrize("kind", ["element", "vector"])
def test_importance_is_that_of_a_whole_backward_pass(decoder, blocks, kind):
    batches = [blocks.ids[:2], blocks.ids[2:]]
    found = part_importance(decoder, batches, LAYERS, kind)
    for actual, expected in zip(found, direct_importance(tiny_model(), batches, kind), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "mistral"])
def test_a_narrowed_model_is_the_dense_one_with_zeros(family):
    dense = decoder_of(tiny_model(family))
    narrowed = (NarrowedLayer(2, (1,), (0, 3, 7, 40)), NarrowedLayer(4, (0, 1), tuple(range(1, 48, 2))))
    before = check_logits_of(dense.model)
    view = Edit(narrowed=narrowed).view(dense)
    with masked(dense, narrowed):
        expected = dense.model(TOKENS).logits
    torch.testing.assert_close(view(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(check_logits_of(dense.model), before)
    check_removal(dense, view, (), narrowed)  # cached generation, too
    removed = sum(p.numel() for p in dense.model.parameters()) - sum(p.numel() for p in view.parameters())
    assert removed == Edit(narrowed=narrowed).num_parameters_removed(dense)


def test_the_mask_zeroes_what_is_removed(decoder):
    """Against weights set to zero by hand, so that view and mask can't be wrong alike."""
    by_hand = tiny_model()
    layer = by_hand.model.layers[3]
    layer.self_attn.o_proj.weight.data[:, GROUP * SIZE :] = 0  # the second key-value head's query heads
    layer.mlp.down_proj.weight.data[:, 5:] = 0
    view = Edit(narrowed=(NarrowedLayer(3, (0,), tuple(range(5))),)).view(decoder)
    torch.testing.assert_close(view(TOKENS).logits, by_hand(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_the_least_important_go(decoder, blocks):
    pruner = LlmPruner(protect_first=2, protect_last=1)
    edit = pruner.select(Workspace(decoder, blocks, batch_size=4), 1)
    heads, channels = part_importance(decoder, [blocks.ids], LAYERS, "element")
    assert [one.layer for one in edit.narrowed] == list(LAYERS)
    for one, of_heads, of_channels in zip(edit.narrowed, heads, channels, strict=True):
        assert set(one.heads) == set(of_heads.topk(len(one.heads)).indices.tolist())
        assert set(one.channels) == set(of_channels.topk(len(one.channels)).indices.tolist())
        assert edit.scores.values[one.layer] > 0
    assert edit.scores.values[0] is None
    one_layer = sum(p.numel() for p in decoder.layers[0].parameters())
    assert edit.num_parameters_removed(decoder) == pytest.approx(one_layer, rel=0.02)
    assert edit.interfaces == []
    assert edit.identity() != Edit().identity()


@pytest.mark.parametrize(
    ("sizes", "n", "published"),
    [
        ({"intermediate_size": 11008, "num_key_value_heads": 32, "vocab_size": 32000}, 7, 20.56),
        ({"intermediate_size": 11008, "num_key_value_heads": 32, "vocab_size": 32000}, 9, 26.99),
        ({"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}, 7, 19.37),
    ],
    ids=["llama2_7b 7", "llama2_7b 9", "llama3_8b 7"],
)
def test_the_papers_ratios(decoder, sizes, n, published):
    """LinearPatch, table 1, column 'ratio' of LLM-Pruner; counted without memory for weights."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, **sizes))
    dense, pruner = replace(decoder, model=model, layers=model.model.layers, config=model.config), LlmPruner()
    heads, channels = pruner.kept(dense, n)
    narrowed = tuple(NarrowedLayer(layer, tuple(range(heads)), tuple(range(channels))) for layer in range(4, 30))
    ratio = 100 * Edit(narrowed=narrowed).num_parameters_removed(dense) / dense.num_parameters
    assert ratio == pytest.approx(published, abs=0.5 if n == 7 else 0.1)


def test_too_many_layers_worth_are_rejected(decoder):
    with pytest.raises(ConfigError, match="Allowed: 1 to 2"):
        LlmPruner(protect_first=2, protect_last=1).check(6, 3)


def test_a_family_with_packed_projections_is_rejected_by_name():
    with pytest.raises(ModelError, match=r"no matrix self_attn\.q_proj"):
        widths_of(decoder_of(tiny_model("phi3")), 0)


def test_what_needs_whole_layers_is_rejected(decoder, workspace):
    edit = Edit(narrowed=(NarrowedLayer(2, (0,), (1, 2)),))
    with pytest.raises(ConfigError, match="patch=lstsq bridges interfaces"):
        repair(workspace, LeastSquares(), edit)
    assert repair(workspace, NoPatch(), edit).edit.narrowed == edit.narrowed
    with pytest.raises(ModelError, match="can't be run on the dense model's layers"):
        _ = Runner(decoder, edit).steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["patch=rotate"], "there is no interface for patch=rotate"),
        (["patch=none", "save_model=true", "save_format=plain"], "save_format=plain can't hold"),
        (["patch=none", "save_model=true", "save_format=adapter"], "save_format=adapter can't hold"),
    ],
)
def test_a_run_rejects_them_before_it_starts(tmp_path, said, overrides, message):
    assert run("pruner=llm_pruner", f"output_dir={tmp_path}/D", *overrides) != 0
    assert message in said()


@pytest.mark.slow
def test_a_run_measures_saves_and_reloads_it(tmp_path):
    places = [f"output_dir={tmp_path}/D", f"cache_dir={tmp_path}/cache"]
    assert run("pruner=llm_pruner", "patch=none", "save_model=true", *places) == 0
    record = result(tmp_path / "D")
    pruning = record["pruning"]
    assert pruning["removed_layers"] == []
    assert pruning["interfaces"] == []
    model = linearpatch.load(tmp_path / "D" / "model")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert pruning["num_parameters_removed"] == record["model"]["num_parameters"] - count > 0
    assert set(pruning["narrowed"]) == {str(layer) for layer in range(4, 10)}
    assert set(record["metrics"]) == {"dense", "pruned"}
    assert record["metrics"]["dense"] != record["metrics"]["pruned"]
    assert json.loads((tmp_path / "D" / "model" / "config.json").read_text())["linear_sizes"]
    tokens = torch.arange(3, 40)[None]
    without_us = AutoModelForCausalLM.from_pretrained(tmp_path / "D" / "model", trust_remote_code=True)
    assert torch.equal(without_us(tokens).logits, model(tokens).logits)
    assert "narrower layers" in (tmp_path / "D" / "model" / "README.md").read_text()
