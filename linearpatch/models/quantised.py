"""Matrices whose weights are quantised: they compute as others do, and nothing can be added to what they hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from linearpatch.errors import ModelError

PACKED = ("qweight", "weight_packed", "W_q")  # what GPTQ and AWQ, compressed-tensors and HQQ keep in place of a weight
REARRANGES = "support_avx512bf16_for_cpu"  # of bitsandbytes' modules: whether they rearrange their codes
ORDER = (
    "Or prune and repair the model before it is quantised, and quantise the checkpoint: see "
    "docs/kinds.md, Quantised checkpoints."
)


def is_quantised(module: nn.Module) -> bool:
    """Whether a module computes with a matrix that isn't kept as one of numbers of 16 bits or more."""
    weight: Any = module._parameters.get("weight")
    if weight is None:
        return any(isinstance(getattr(module, name, None), Tensor) for name in PACKED)
    return is_packed(weight)


def is_packed(weight: Tensor) -> bool:
    """Whether a weight holds codes (bitsandbytes), 8-bit floating-point numbers, or both by a class of torchao."""
    packed = not weight.is_floating_point() or weight.dtype.itemsize == 1
    return packed or type(weight).__module__.startswith("torchao")


def quantised_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The quantised modules of a model, by name."""
    return ((name, module) for name, module in model.named_modules() if is_quantised(module))


def check_unquantised(modules: Iterable[nn.Module], what: str, instead: str) -> None:
    """Reject work on the values of weights that are quantised.

    Args:
        modules: Those concerned, with all in them.
        what: What needs the values, as the subject of a sentence.
        instead: What works, as a sentence.

    Raises:
        ModelError: says so.
    """
    for module in modules:
        if any(is_quantised(part) for part in module.modules()):
            raise ModelError(
                f"{what} needs the values of weights, and those of {type(module).__name__} are quantised. {instead} "
                f"{ORDER}"
            )


def keep_order_of_codes(model: nn.Module) -> None:
    """Stop bitsandbytes from rearranging 4-bit codes for the processor when they are first computed with.

    It does so in place and rounds their scales to bfloat16, and when they are saved, its way back leaves the scales
    rearranged (0.50): the model and its checkpoint would be others from then on.
    """
    for module in model.modules():
        if getattr(module, REARRANGES, False):
            setattr(module, REARRANGES, False)


def check_order_of_codes(model: nn.Module) -> None:
    """Reject a model whose codes were rearranged before we had it.

    Raises:
        ModelError: says what to do.
    """
    for name, module in quantised_modules(model):
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ModelError(
                f"bitsandbytes rearranged the codes of {name} for this processor when the model ran, and can't restore "
                "them exactly. Load it again, and prune it before anything runs it; or save an adapter."
            )


def num_parameters(modules: Iterable[nn.Module]) -> int:
    """Parameters of some modules; of a quantised matrix the numbers that it stands for, not those that it keeps."""
    sizes: dict[int, int] = {}
    for module in modules:
        for part in module.modules():
            shape = [getattr(part, name, None) for name in ("out_features", "in_features")]
            counted = is_quantised(part) and None not in shape
            if counted:
                sizes[id(part._parameters.get("weight", part))] = math.prod(shape)  # type: ignore[arg-type]
            sizes |= {
                id(parameter): parameter.numel()
                for name, parameter in part.named_parameters(recurse=False)
                if not (counted and name == "weight")
            }
    return sum(sizes.values())
