"""Patches that existing weights can absorb, so that a stock checkpoint needs no code.

Three kinds can. One number α for the whole stream: every reader normalises the stream first, so that it is
enough to divide what later layers add by α. And a matrix on an MLP's output: it is multiplied into the
MLP's last product. What is to be added to that product's weight is there already.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from linearpatch.errors import ModelError
from linearpatch.models.agreement import allowed_difference, check_logits_of, difference
from linearpatch.models.decoder import Decoder, decoder_of
from linearpatch.models.modeling_linearpatch import ChannelScale, LinearMap
from linearpatch.models.offload import read_parameter, replace_parameter
from linearpatch.models.views import Site, view_of
from linearpatch.models.writers import Writers, mlp_writer, writers_of


def is_foldable(patches: Sequence[tuple[Site, nn.Module]]) -> bool:
    """Whether stock weights can absorb all of some patches, going by their form."""
    return all(
        _is_scalar(patch) or _is_branch_map(site, patch) or site.branch == "mlp_weight" for site, patch in patches
    )


@torch.no_grad()
def folded_view(dense: Decoder, removed: Sequence[int], patches: Sequence[tuple[Site, nn.Module]]) -> PreTrainedModel:
    """The pruned model with its patches folded into copies of the weights concerned.

    Its class is the stock one and it has no parameters of its own; all weights but those folded into are
    the dense model's. A few tokens run through it and through the patched view, which must agree.

    Args:
        dense: The dense model; it does not change.
        removed: Dense indices of the removed layers.
        patches: Patches that `is_foldable`, with their sites.

    Raises:
        ModelError: the family's layers can't absorb them exactly.
    """
    model = view_of(dense, removed, [(site, patch) for site, patch in patches if site.branch == "mlp_weight"])
    layers = decoder_of(model).layers
    kept = [index for index in range(dense.num_layers) if index not in set(removed)]
    for site, patch in patches:
        if site.branch == "mlp":
            assert isinstance(patch, LinearMap)
            _multiply(mlp_writer(layers[kept.index(site.start - 1)]), patch.weight.T)
        elif site.branch == "stream":
            assert isinstance(patch, ChannelScale)
            alpha = patch.scale.item()
            if alpha <= 0:
                raise ModelError(
                    f"The scale at [{site.start}, {site.end}) is {alpha:.4g}. Only a positive one can be folded: a "
                    "norm forgets a stream's scale, not its sign. Use save_format=custom or adapter."
                )
            for layer in layers[sum(index < site.reader for index in kept) :]:
                _divide(writers_of(layer), alpha)
    if patches:
        _check(model, view_of(dense, removed, patches))
    return model


def _is_scalar(patch: nn.Module) -> bool:
    return isinstance(patch, ChannelScale) and patch.scale.numel() == 1


def _is_branch_map(site: Site, patch: nn.Module) -> bool:
    return site.branch == "mlp" and isinstance(patch, LinearMap) and patch.bias is None


def _divide(writers: Writers, alpha: float) -> None:
    """Make a layer add 1/α of what it added."""
    for writer in (writers.attention, writers.mlp):
        if writers.normed:
            # Families store a norm's gain, or how far it is from 1: a vector of ones comes back as the gain.
            weight = read_parameter(writer, "weight")
            offset = (writer(torch.ones_like(weight)) - weight).double().mean().round()
            replace_parameter(writer, "weight", (weight.double() + offset) / alpha - offset)
        else:
            for module, name in _output_parameters(writer):
                replace_parameter(module, name, read_parameter(module, name).double() / alpha)


def _multiply(writer: nn.Module, matrix: Tensor) -> None:
    """Make a writer's output M become M A for rows M."""
    a = matrix.double()
    for module, name in _output_parameters(writer):
        weight = read_parameter(module, name).double()
        a = a.to(weight.device)
        # Written [out, in] by nn.Linear and most experts; [in, out] by GPT-2 and by transposed experts.
        row_major = name.endswith("bias") or isinstance(module, Conv1D) or getattr(module, "is_transposed", False)
        replace_parameter(module, name, weight @ a if row_major else a.T @ weight)


def _output_parameters(writer: nn.Module) -> list[tuple[nn.Module, str]]:
    """The parameters by which a writer's output is linear: weight and bias, or every expert's last product."""
    if not hasattr(writer, "experts"):
        return [(writer, name) for name, _ in writer.named_parameters(recurse=False)]
    found = [
        (module, name)
        for path, module in writer.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if "down_proj" in f"{path}.{name}"
    ]
    if not found:
        raise ModelError(
            f"{type(writer).__name__} keeps its experts' weights in a way this version doesn't know. Use another "
            "patch, or save_format=custom or adapter."
        )
    return found


def _check(folded: PreTrainedModel, patched: PreTrainedModel) -> None:
    """Run a few tokens through both: a layer that isn't what it seems shows in the logits.

    Raises:
        ModelError: they differ by more than rounding.
    """
    error = difference(check_logits_of(folded), check_logits_of(patched))
    allowed = allowed_difference(patched.dtype)
    if not error <= allowed:
        raise ModelError(
            f"Folding the patches into the weights of {type(folded).__name__} changes its logits by {error:.1e} of the "
            f"largest (allowed: {allowed:.0e} in {str(patched.dtype).removeprefix('torch.')}). Use save_format=custom "
            "or adapter."
        )
