"""Parameters that accelerate keeps in CPU memory or on disk: their modules hold them on the meta device."""

from __future__ import annotations

import gc
from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: where its parameters are, or where accelerate brings them."""
    parameter = next(iter(module.parameters()), None)
    if parameter is None:
        return torch.device("cpu")
    if not parameter.is_meta:
        return parameter.device
    owners = (part for part in module.modules() if part._parameters and getattr(part, "_hf_hook", None) is not None)
    owner = next(owners, None)
    return parameter.device if owner is None else torch.device(_offloading_hook(owner).execution_device)


def is_offloaded(module: nn.Module) -> bool:
    """Whether some of its parameters are kept in CPU memory or on disk."""
    return any(parameter.is_meta for parameter in module.parameters())


def read_parameter(module: nn.Module, name: str) -> Tensor:
    """The value of a module's own parameter, wherever it is kept."""
    parameter = module.get_parameter(name)
    if not parameter.is_meta:
        return parameter
    value: Tensor = _offloading_hook(module).weights_map[name]
    return value


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module of a view another value for one of its parameters; the dense model keeps its own."""
    old = module.get_parameter(name)
    if old.is_meta:
        hook = _offloading_hook(module)
        hook.weights_map = ChainMap({name: value.to(old.dtype)}, hook.weights_map)
    else:
        module.register_parameter(name, nn.Parameter(value.to(old), requires_grad=False))


@contextmanager
def parameter_replaced(module: nn.Module, name: str, value: Tensor) -> Iterator[None]:
    """While open, a module computes with another value for one of its parameters."""
    old = module.get_parameter(name)
    if old.is_meta:
        hook = _offloading_hook(module)
        kept, hook.weights_map = hook.weights_map, ChainMap({name: value.to(old.dtype)}, hook.weights_map)
    else:
        module.register_parameter(name, nn.Parameter(value.to(old), requires_grad=False))
    try:
        yield
    finally:
        if old.is_meta:
            hook.weights_map = kept
        else:
            module.register_parameter(name, old)


@contextmanager
def parked(model: nn.Module) -> Iterator[None]:
    """While open, a model's weights are in CPU memory, so that its devices have room for something else.

    It can't run meanwhile. Weights that are there or on disk anyway stay where they are.
    """
    homes = [(tensor, tensor.device) for tensor in (*model.parameters(), *model.buffers())]
    moved = [(tensor, device) for tensor, device in homes if device.type not in ("cpu", "meta")]
    for tensor, _ in moved:
        tensor.data = tensor.data.cpu()
    _release()
    try:
        yield
    finally:
        _release()
        for tensor, device in moved:
            tensor.data = tensor.data.to(device)


def _release() -> None:
    """Give devices' memory that nothing uses any more back, for other processes as well."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _offloading_hook(module: nn.Module) -> Any:
    hook: Any = module._hf_hook
    # One of several hooks in a row holds the weights.
    return next(candidate for candidate in (*getattr(hook, "hooks", ()), hook) if hasattr(candidate, "weights_map"))
