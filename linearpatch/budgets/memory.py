"""At most so many bytes of weights and cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linearpatch.budgets.amounts import BYTES, amount
from linearpatch.budgets.budget import Limit, Limits
from linearpatch.budgets.parameters import layers_worth
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import require_range
from linearpatch.models.decoder import Decoder, cache_of, last_logits_only
from linearpatch.models.edit import Edit
from linearpatch.registry import component


@component("budget", "memory")
@dataclass(frozen=True)
class Memory(Limit):
    """The fewest layers without which the weights, in the model's dtype, and the cache need at most so many bytes.

    The cache of keys and values is what the model returns after reading `length` tokens, times `batch_size`.
    Activations aren't counted: they depend on what serves the model.

    Attributes:
        at_most: A share of the dense model's up to 1, or bytes: `0.8`, `6e9`, `6GB`, `5.5GiB`.
        length: Tokens in a sequence of the cache; 0: the weights alone.
        batch_size: Sequences at a time.
    """

    at_most: Any = 0.8
    length: int = 4096
    batch_size: int = 1

    def __post_init__(self) -> None:
        amount("budget.at_most", self.at_most, BYTES)
        require_range("budget.length", self.length, low=0)
        require_range("budget.batch_size", self.batch_size, low=1)

    @property
    def label(self) -> str:
        """Such as `memory6GB`."""
        return f"memory{self.at_most}"

    def limits(self, workspace: Workspace, sizes: Sequence[int]) -> Limits:
        """Counted of the model itself, from mean layers on."""
        dense = workspace.decoder
        length, batch = self.length, self.batch_size

        def bytes_of(decoder: Decoder) -> float:
            return weight_bytes(decoder) + batch * cache_bytes(decoder, length)

        def measure(edit: Edit) -> tuple[float, None]:
            return bytes_of(edit.decoder(dense)), None

        whole = bytes_of(dense)
        number, is_share = amount("budget.at_most", self.at_most, BYTES)
        limit = number * whole if is_share else number
        of_cache = (whole - weight_bytes(dense)) / dense.num_layers
        per_layer = [weight_bytes(layer) + of_cache for layer in dense.layers]
        return Limits(limit, whole, "bytes", measure, layers_worth(whole - limit, per_layer))


def weight_bytes(model: Any) -> int:
    """Bytes of all parameters, shared ones once.

    Args:
        model: A decoder, or a module.
    """
    parameters = (model.model if isinstance(model, Decoder) else model).parameters()
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


@torch.inference_mode()
def cache_bytes(decoder: Decoder, length: int) -> int:
    """Bytes of what a model keeps of one sequence to continue it, without counters of a few numbers."""
    if length == 0:
        return 0
    ids = torch.zeros(1, length, dtype=torch.long, device=decoder.input_device)
    output = decoder.model(input_ids=ids, use_cache=True, **last_logits_only(decoder.model))
    tensors = {id(tensor): tensor for tensor in _tensors(list(cache_of(output).values()), set())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values() if tensor.ndim > 1)


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """All tensors in a cache, of whatever class that is."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        value = list(value.values())
    elif hasattr(value, "__dict__"):
        value = list(vars(value).values())
    for item in value if isinstance(value, list | tuple) else ():
        yield from _tensors(item, seen)
