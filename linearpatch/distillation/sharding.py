"""Layers whose weights are spread over the processes of a training, each of which holds a part of every one (FSDP2).

A layer is gathered when it runs and dropped afterwards, forwards as backwards. Gradients of what trains in it arrive
summed over the processes, each with its own part. Embeddings, final norm, head and patches are whole in every process.
All processes therefore run the same layers in the same order, each as often as the others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.models.decoder import Decoder, decoder_of
from linearpatch.models.offload import read_parameter
from linearpatch.models.removal import without_sublayers
from linearpatch.models.runner import Runner
from linearpatch.models.sublayers import remember_sublayers
from linearpatch.models.weight_changes import WeightChange, changed_decoder, shared_tensors
from linearpatch.runtime.distributed import Workers


def sharded(student: Runner, device: torch.device) -> Runner:
    """The same student with a dense model of its own, whose layers are spread over all processes.

    Every process calls it with an equal student. At most one layer at a time is whole on a device.

    Args:
        student: On the dense model, whose weights are in CPU memory or on disk. Its changed weights become this
            process' parts of them.
        device: That of this process.
    """
    from accelerate.hooks import remove_hook_from_submodules
    from torch.distributed.device_mesh import init_device_mesh

    dense, edit = student.decoder, student.edit
    remember_sublayers(dense)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    model = copy.deepcopy(dense.model, memo=shared_tensors(dense.model))
    remove_hook_from_submodules(model)
    own = decoder_of(model)
    inside = {id(part) for layer in own.layers for part in layer.modules()}
    pairs = list(zip(model.modules(), dense.model.modules(), strict=True))
    _fill((pair for pair in pairs if id(pair[0]) not in inside), device)

    changed_layers: list[nn.Module] = []
    for index, layer in enumerate(own.layers):
        _fill(zip(layer.modules(), dense.layers[index].modules(), strict=True), device)
        changes = {name: change.to(device) for name, change in edit.weights.items() if name.layer == index}
        edited = changed_decoder(own, changes)
        changed_layers.append(edited.layers[index])
        lacks = {index: edit.removed_parts[index]} if index in edit.removed_parts else {}
        runs = without_sublayers(edited, lacks).layers[index]
        _shard(layer, mesh)
        if runs is not layer:
            _shard(runs, mesh, list(changes.values()))
    after = {name: change.to(device) for name, change in edit.weights.items() if name.layer == dense.num_layers}
    changed: Decoder = replace(changed_decoder(own, after), layers=nn.ModuleList(changed_layers))
    return replace(student, decoder=own, changed=changed)


def _fill(pairs: Iterable[tuple[nn.Module, nn.Module]], device: torch.device) -> None:
    """Bring the dense model's values to a device, for modules that are given with its own."""
    made: dict[int, nn.Parameter] = {}  # weights that modules share stay shared
    for module, original in pairs:
        for name, parameter in original._parameters.items():
            if parameter is not None:
                if parameter.is_meta or id(parameter) not in made:
                    value = read_parameter(original, name).detach().to(device)
                    made[id(parameter)] = nn.Parameter(value, requires_grad=False)
                module.register_parameter(name, made[id(parameter)])
        for name, buffer in original._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.to(device)


def _shard(module: nn.Module, mesh: Any, changes: Sequence[WeightChange] = ()) -> None:
    """Spread the weights of a layer; those that train are afterwards this process' parts in the changes as well."""
    from torch.distributed.fsdp import fully_shard

    names = {id(parameter): name for name, parameter in module.named_parameters()}
    layer: Any = fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # Each process weights its own sequences, so that the sum over processes is the gradient of their mean.
    if hasattr(layer, "set_force_sum_reduction_for_comms"):
        layer.set_gradient_divide_factor(1.0)
        layer.set_force_sum_reduction_for_comms(True)
    else:  # torch before 2.9
        layer.set_reduce_scatter_divide_factor(1.0)
    for change in changes:
        for name, parameter in list(change.named_parameters()):
            setattr(change, name, module.get_parameter(names[id(parameter)]))


def own_batches(
    rows: Sequence[int], size: int, workers: Workers, *, equally_often: bool
) -> list[tuple[Sequence[int], float]]:
    """This process' batches of some sequences, and how much each counts in the mean over all of them.

    Args:
        rows: Sequences of all processes, equally long.
        size: Of a batch, at most.
        workers: Processes that share them.
        equally_often: Whether all processes get as many batches, as they must where layers are sharded: what some do
            beside the others counts nothing.
    """
    own = workers.share(rows)
    batches = [own[start : start + size] for start in range(0, len(own), size)]
    shares = [(batch, len(batch) / len(rows)) for batch in batches]
    most = math.ceil(math.ceil(len(rows) / workers.count) / size)
    return shares + [(rows[:1], 0.0)] * (most - len(batches) if equally_often else 0)


def is_sharded(values: Tensor) -> bool:
    """Whether a tensor is spread over processes."""
    return hasattr(values, "full_tensor")


def local(values: Any) -> Tensor:
    """This process' part of a tensor that is spread over processes, in the same memory; any other itself."""
    part: Tensor = values.to_local() if is_sharded(values) else values
    return part


def gathered(values: Any, *, keep: bool) -> Tensor:
    """A tensor that is spread over processes, whole; any other itself. All processes must ask.

    Args:
        values: Any tensor.
        keep: Whether this process needs it: in CPU memory. Others get an empty one.
    """
    if not is_sharded(values):
        return torch.as_tensor(values)
    whole: Tensor = values.full_tensor()
    return whole.cpu() if keep else torch.empty(0)


def spread_like(values: Tensor, model: Any) -> Tensor:
    """A whole tensor, which every process has, spread as another is."""
    if not is_sharded(model):
        return values
    from torch.distributed.tensor import distribute_tensor

    spread: Tensor = distribute_tensor(values.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
    return spread


def joined(part: Tensor, model: Any) -> Tensor:
    """A tensor that is spread as another is, of this process' part of it; the part itself where that is whole."""
    if not is_sharded(model):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part.to(model.device), model.device_mesh, model.placements, shape=model.shape, stride=model.stride()
    )


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], longest: float, workers: Workers) -> None:
    """Scale gradients down to a norm, that of all processes' parts together."""
    spread = [parameter for parameter in parameters if is_sharded(parameter)]
    if not spread:
        nn.utils.clip_grad_norm_(parameters, longest)
        return
    whole = [parameter for parameter in parameters if not is_sharded(parameter)]
    squares = workers.sum(_squares(spread)) + _squares(whole)
    norm = squares.sqrt().float()
    for group in (spread, whole):
        for parameter in group:
            gradient = local(parameter.grad)
            gradient.mul_(torch.clamp(longest / (norm + 1e-6), max=1.0).to(gradient.device))


def _squares(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The sum of the squares of this process' parts of gradients, in fp64."""
    total = torch.zeros((), dtype=torch.float64)
    for parameter in parameters:
        total += local(parameter.grad).double().square().sum().cpu()
    return total
