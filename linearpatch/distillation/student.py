"""The student: the patched model from the first layer on at which it differs from the dense one.

It shares every weight with its teacher, and up to the first interface it computes the same. So it never
runs from the tokens: it takes over the dense model's stream there, and gradients go no further back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from linearpatch.models.decoder import Decoder, LayerCall, unwrap
from linearpatch.models.views import Site
from linearpatch.models.writers import patched_mlp


@dataclass(frozen=True)
class Student:
    """The layers that the student runs, with its patches between them.

    Attributes:
        decoder: The dense model, whose layers it runs; never changed.
        removed: Dense indices of the layers it lacks.
        sites: Where its patches sit.
        patches: One module for each site, `[…, hidden_size]` to the same shape.
        recompute: Keep only what each layer reads for the backward pass, and run it again there (gradient
            checkpointing).
    """

    decoder: Decoder
    removed: Sequence[int]
    sites: Sequence[Site]
    patches: nn.ModuleList
    recompute: bool = False

    @cached_property
    def entry(self) -> int:
        """The stream it takes over: that of the first interface, or before the MLP that a patch sits on."""
        return min(site.start - (site.branch != "stream") for site in self.sites)

    @cached_property
    def layers(self) -> list[int]:
        """Dense indices of the layers that it runs."""
        return [index for index in range(self.entry, self.decoder.num_layers) if index not in set(self.removed)]

    def run(self, stream: Tensor, calls: Mapping[int, LayerCall]) -> Tensor:
        """What enters the final norm.

        Args:
            stream: The dense model's stream `entry`, `[batch, tokens, hidden_size]`.
            calls: What each layer is given beside the stream.
        """
        final = self.decoder.num_layers
        return self.streams(stream, calls, [final])[final]

    def streams(self, stream: Tensor, calls: Mapping[int, LayerCall], wanted: Collection[int]) -> dict[int, Tensor]:
        """What some layers read (the final norm for the number of layers), patched; no layer runs after them."""
        found: dict[int, Tensor] = {}
        for reader in (*self.layers, self.decoder.num_layers):
            stream = self._patched(reader, stream)
            if reader in wanted:
                found[reader] = stream
            if len(found) == len(wanted):
                break
            if self.recompute and stream.requires_grad:
                stream = checkpoint(self._run_layer, reader, stream, calls[reader], use_reentrant=False)
            else:
                stream = self._run_layer(reader, stream, calls[reader])
        return found

    def _patched(self, reader: int, stream: Tensor) -> Tensor:
        for site, patch in zip(self.sites, self.patches, strict=True):
            if site.branch == "stream" and site.reader == reader:
                stream = patch(stream)
        return stream

    def _run_layer(self, index: int, stream: Tensor, call: LayerCall) -> Tensor:
        zipped = zip(self.sites, self.patches, strict=True)
        here = [(site.branch, patch) for site, patch in zipped if site.branch != "stream" and site.start - 1 == index]
        with patched_mlp(self.decoder.layers[index], here):
            return unwrap(self.decoder.layers[index](stream, *call.args, **call.kwargs))
