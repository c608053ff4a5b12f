"""Where a pruned model deviates from the dense one: profiles over the layers, and the stream at each interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from linearpatch.data.blocks import BlockSpec, SettingNames, TokenBlocks
from linearpatch.data.reader import Reader
from linearpatch.errors import require_range, settings_of
from linearpatch.evaluation.evaluation import Evaluation, Measured, Measurement, Preparation, Subject
from linearpatch.models.decoder import Decoder
from linearpatch.models.model import LoadedModel
from linearpatch.models.passes import walk
from linearpatch.models.units import interfaces_of
from linearpatch.registry import component
from linearpatch.results.metric import Metric
from linearpatch.storage.cache import Cache


@component("eval", "diagnostics")
@dataclass(frozen=True)
class Diagnostics(Evaluation):
    """Streams of each stage against those of dense, on the evaluation corpus.

    Arrays for plots go to `diagnostics.safetensors`, one entry for each stream that the stage has (`streams` holds
    their dense indices):

    - `magnitude`, `magnitude_ratio`: mean |x| of the stream, and its ratio to that of dense's;
    - `cosine_to_next`: mean cosine over tokens with the next stream of the same model;
    - `cosine_to_dense`, `error_to_dense`: means over tokens of the cosine with dense's stream, and of the squared
      distance from it as a share of its own square;
    - `interface_START_END/channel_magnitude`: mean |x| of each channel where the interface ends, in dense what is
      expected there, in pruned what arrives, in patched what the patch makes of it.

    Attributes:
        num_blocks: Token blocks to read.
        seq_len: Tokens in each.
        bos: `tokenizer`, `each` or `none`; see `BlockSpec`.
    """

    num_blocks: int = 8
    seq_len: int = 512
    bos: str = "tokenizer"

    def __post_init__(self) -> None:
        require_range("eval.diagnostics.num_blocks", self.num_blocks, low=1)
        with settings_of("eval.diagnostics"):
            self.spec("diagnostics")  # checks the rest

    def spec(self, name: str) -> BlockSpec:
        """How the text is cut, for the evaluation of that name."""
        names = SettingNames(f"eval.{name}", "seq_len", overlap="")
        return BlockSpec(self.num_blocks, self.seq_len, "first", self.bos, names=names)

    def readers(self, reader: Reader) -> tuple[Reader, ...]:
        """The run's evaluation corpus."""
        return (reader,)

    def prepare(self, name: str, reader: Reader) -> Preparation:
        """Read the corpus; all stages are measured in one go, beside dense."""
        text = reader.open()

        def measurements(model: LoadedModel, cache: Cache) -> list[Measurement]:
            spec = self.spec(name)
            blocks = text.generated(model, cache, spec).cut(spec, model.tokenizer)

            def run(subjects: Sequence[Subject], on_step: Callable[[float], None]) -> list[Measured]:
                return self._run(name, blocks, subjects, on_step)

            key = {"version": self.version, "tokens": blocks.hash}
            return [Measurement(name, key, len(blocks.ids), run, together=True)]

        return measurements

    def _run(
        self, name: str, blocks: TokenBlocks, subjects: Sequence[Subject], on_step: Callable[[float], None]
    ) -> list[Measured]:
        removed = next((subject.removed for subject in subjects if subject.removed), ())
        dense = subjects[0].dense
        profiles = [_Profile(subject.decoder, subject.removed, removed, dense.num_layers) for subject in subjects]
        for ids in blocks.ids.split(1):
            expected = _streams(dense, ids)
            for profile in profiles:
                profile.add(expected if profile.decoder is dense else _streams(profile.decoder, ids), expected)
            on_step(1)
        protocol = f"{len(blocks.ids)} windows of {blocks.ids.shape[1]} tokens of {blocks.source}, bos={self.bos}"
        return [profile.measured(name, protocol, blocks) for profile in profiles]


class _Profile:
    """Sums over tokens for one model; one entry for each of its streams."""

    def __init__(self, decoder: Decoder, missing: Sequence[int], removed: Sequence[int], num_layers: int) -> None:
        self.decoder = decoder
        self.streams = [index for index in range(num_layers + 1) if index not in missing]  # by dense index
        self.interfaces = interfaces_of(removed)
        self._tokens = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, own: Sequence[Tensor], dense: Sequence[Tensor]) -> None:
        """Take the streams of one batch, each `[tokens, hidden_size]`."""
        self._tokens += len(own[0])
        expected = [dense[index] for index in self.streams]
        self._sum("magnitude", [x.abs().mean(dim=1).sum() for x in own])
        self._sum("cosine_to_next", [_cosines(x, y).sum() for x, y in pairwise(own)])
        self._sum("cosine_to_dense", [_cosines(x, y).sum() for x, y in zip(own, expected, strict=True)])
        self._sum("error_to_dense", [_errors(x, y).sum() for x, y in zip(own, expected, strict=True)])
        self._sum("expected_magnitude", [y.abs().mean(dim=1).sum() for y in expected])
        for interface in self.interfaces:
            arrived = own[self.streams.index(interface.reader)]
            self._sum(f"interface_{interface.start}_{interface.end}/channel_magnitude", list(arrived.abs().sum(dim=0)))

    def measured(self, name: str, protocol: str, blocks: TokenBlocks) -> Measured:
        """The profiles as arrays, the interfaces as metrics."""
        arrays = {key: (total / self._tokens).float() for key, total in self._sums.items()}
        arrays["magnitude_ratio"] = arrays["magnitude"] / arrays.pop("expected_magnitude")
        arrays["streams"] = torch.tensor(self.streams)
        metrics: dict[str, Metric] = {}
        for interface in self.interfaces:
            at = self.streams.index(interface.reader)
            for key in ("magnitude_ratio", "cosine_to_dense", "error_to_dense"):
                metrics[f"{name}/interface_{interface.start}_{interface.end}/{key}"] = Metric.of(
                    arrays[key][at].item(), None, self._tokens, protocol, blocks.hash
                )
        metrics[f"{name}/final_cosine_to_dense"] = Metric.of(
            arrays["cosine_to_dense"][-1].item(), None, self._tokens, protocol, blocks.hash, headline=True
        )
        return Measured(metrics, arrays=arrays)

    def _sum(self, key: str, values: Sequence[Tensor]) -> None:
        sums = torch.stack(list(values)).cpu()
        self._sums[key] = self._sums[key] + sums if key in self._sums else sums


def _streams(decoder: Decoder, ids: Tensor) -> list[Tensor]:
    """What each layer and the final norm read, `[tokens, hidden_size]` in fp64, on the CPU."""
    streams: list[Tensor] = []
    walk(decoder, ids, lambda _, hidden, __: streams.append(hidden.flatten(0, 1).cpu().double()))
    return streams


def _errors(own: Tensor, expected: Tensor) -> Tensor:
    return (own - expected).square().sum(dim=-1) / expected.square().sum(dim=-1)


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    return functional.cosine_similarity(first, second, dim=-1)
