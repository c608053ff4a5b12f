"""How many tokens the routers of mixtures of experts send to each expert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.models.decoder import Decoder
from linearpatch.models.places import OnOutput
from linearpatch.models.projections import EXPERTS, is_mixture, output_weights


@contextmanager
def routed_tokens(decoder: Decoder, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """While open, keep how many tokens each expert of some layers got in the last forward pass, `[experts]` by layer.

    Layers without experts, or with experts that are called in an unknown way, have no entry.
    """
    routed: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:
            mixture = OnOutput.output_of(decoder, layer)
            if is_mixture(mixture):
                for handle in _counting(mixture, decoder.hidden_size, layer, routed):
                    stack.callback(handle.remove)
        yield routed


def _counting(mixture: nn.Module, hidden_size: int, layer: int, routed: dict[int, Tensor]) -> Iterator[Any]:
    """Hooks on the experts of a layer that keep counts of its last call."""
    experts = mixture.get_submodule(EXPERTS)
    if isinstance(experts, nn.ModuleList):
        mixture_begins = mixture.register_forward_pre_hook(
            lambda *_: routed.__setitem__(layer, torch.zeros(len(experts), dtype=torch.long))
        )
        yield mixture_begins
        for number, expert in enumerate(experts):
            yield expert.register_forward_pre_hook(_add_rows(routed, layer, number))
        return
    count = next(
        (
            weight.module.get_parameter(weight.name).shape[0]
            for weight in output_weights(mixture, hidden_size)
            if weight.module is experts and not weight.is_bias
        ),
        None,
    )
    if count is None:
        return

    def before_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        chosen = next((value for value in tensors if not value.is_floating_point()), None)
        if chosen is not None:  # which experts each token passes; past the last: none
            routed[layer] = torch.bincount(chosen.flatten(), minlength=count)[:count].cpu()
        elif tensors[0].numel() % (count * hidden_size) == 0:  # all tokens for each expert, zeros where it isn't chosen
            rows = tensors[0].reshape(count, -1, hidden_size)
            routed[layer] = rows.any(dim=-1).sum(dim=-1).cpu()

    yield experts.register_forward_pre_hook(before_forward, with_kwargs=True)


def _add_rows(routed: dict[int, Tensor], layer: int, number: int) -> Any:
    def before_forward(_: nn.Module, args: tuple[Any, ...]) -> None:
        routed[layer][number] += args[0].numel() // args[0].shape[-1]

    return before_forward
