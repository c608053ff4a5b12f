"""Where lessons come from: the dense model at every step, or what it said before, kept on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from linearpatch.data.blocks import token_hash
from linearpatch.distillation.training import Keeping, Lesson, Training
from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder, LayerCall
from linearpatch.models.passes import record
from linearpatch.models.runner import Runner
from linearpatch.storage.cache import Cache, Entry

# Sequences in one file of targets. Orders of training shuffle within and between such groups, so that files are
# read one after the other.
SHARD = 32
VERSION = 1  # of what is kept; raise it when that changes


class Source(ABC):
    """Makes lessons of sequences.

    Args:
        training: The loss, which says what is taught.
        student: For where it begins.
        ids: The sequences, `[sequences, tokens]`.
    """

    def __init__(self, training: Training, student: Runner, ids: Tensor) -> None:
        self.training = training
        self.student = student
        self.ids = ids
        self._calls: dict[int, dict[int, LayerCall]] = {}

    @abstractmethod
    def lesson(self, rows: Sequence[int]) -> Lesson:
        """The lesson on some sequences."""

    def _calls_for(self, batch: int) -> dict[int, LayerCall]:
        """What layers are given beside the stream, where no pass of the dense model says it."""
        if batch not in self._calls:
            self._calls[batch] = calls_of_shape(self.student.decoder, batch, self.ids.shape[1])
        return self._calls[batch]


class Online(Source):
    """The dense model runs for every lesson, once and without gradients."""

    def lesson(self, rows: Sequence[int]) -> Lesson:
        """One pass gives the stream where the student begins, what is given beside it, and the targets."""
        decoder, entry, ids = self.student.decoder, self.student.entry, self.ids[list(rows)]
        layers = self.training.streams(self.student)
        recording = record(decoder, ids, layers | {entry})
        targets = self.training.teach(decoder, {index: recording.streams[index] for index in layers})
        calls = recording.calls if layers else self._calls_for(len(ids))
        return Lesson(recording.streams[entry], calls, targets, ids)


class Cached(Source):
    """What the dense model said is read from the cache, made there first where it isn't.

    Targets don't depend on which layers go or how they are patched, so every run on the same model and text
    shares them; the streams, kept in bf16 where asked for, only on the layer where the student begins.

    Args:
        training: The loss.
        student: For where it begins.
        ids: The sequences.
        keeping: What is kept.
        cache: Where files of `SHARD` sequences are.
        model_key: What identifies the dense model.
    """

    def __init__(
        self,
        training: Training,
        student: Runner,
        ids: Tensor,
        keeping: Keeping,
        cache: Cache,
        model_key: Mapping[str, Any],
    ) -> None:
        super().__init__(training, student, ids)
        self.keeping = keeping
        self.cache = cache
        self.model_key = dict(model_key)
        self.kinds = ("targets", "states") if keeping.states else ("targets",)
        self._shard = lru_cache(maxsize=2)(self._load)

    def missing(self) -> list[int]:
        """The files that don't exist yet, by number."""
        return [shard for shard in range(-(-len(self.ids) // SHARD)) if not self._exist(self._keys(shard))]

    def prepare(self, shards: Sequence[int], on_step: Callable[[], None]) -> None:
        """Make some files."""
        for shard in shards:
            self._load(shard)
            on_step()

    def forget(self) -> None:
        """Drop what was read, so that it is read again."""
        self._shard.cache_clear()

    def lesson(self, rows: Sequence[int]) -> Lesson:
        """Read targets, and streams or else run the layers before the student's."""
        of_rows = [{name: values[row % SHARD] for name, values in self._shard(row // SHARD).items()} for row in rows]
        decoder = self.student.decoder
        device = decoder.input_device
        stacked = {name: torch.stack([of_row[name] for of_row in of_rows]).to(device) for name in of_rows[0]}
        if "stream" in stacked:
            stream = stacked.pop("stream").to(decoder.model.dtype)
        else:
            stream = record(decoder, self.ids[list(rows)], {self.student.entry}).streams[self.student.entry]
        return Lesson(stream, self._calls_for(len(rows)), stacked, self.ids[list(rows)])

    def _exist(self, keys: Mapping[str, Mapping[str, Any]]) -> bool:
        return all(self.cache.holds(kind, key) for kind, key in keys.items())

    def _load(self, shard: int) -> dict[str, Tensor]:
        """The tensors of one file by name, `[sequences, …]`; a damaged file is made again."""
        keys = self._keys(shard)
        existed = self._exist(keys)
        entries = self._find(keys) if existed else None
        if entries is None:
            with self.cache.locked("targets", keys["targets"]):  # another run may be making it
                entries = None if existed else self._find(keys)
                if entries is None:
                    entries = [Entry(tensors) for tensors in self._make(self._ids(shard))]
                    for (kind, key), entry in zip(keys.items(), entries, strict=True):
                        self.cache.put(kind, key, entry, remember=False)
        return {name: tensor for entry in entries for name, tensor in entry.tensors.items()}

    def _find(self, keys: Mapping[str, Mapping[str, Any]]) -> list[Entry] | None:
        entries = [self.cache.find(kind, key, remember=False) for kind, key in keys.items()]
        return [entry for entry in entries if entry] if all(entries) else None

    def _make(self, ids: Tensor) -> list[dict[str, Tensor]]:
        """Targets, and streams where they are kept, of some sequences, from the dense model."""
        online = Online(self.training, self.student, ids)
        rows: list[dict[str, Tensor]] = []
        streams: list[Tensor] = []
        for row in range(len(ids)):
            lesson = online.lesson([row])
            rows.append({name: values.cpu() for name, values in lesson.targets.items()})
            if "states" in self.kinds:
                streams.append(lesson.stream.to(torch.bfloat16).cpu())
        targets = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return [targets, {"stream": torch.cat(streams)}] if streams else [targets]

    def _ids(self, shard: int) -> Tensor:
        return self.ids[shard * SHARD : (shard + 1) * SHARD]

    def _keys(self, shard: int) -> dict[str, dict[str, Any]]:
        """What each kind of file depends on. Targets don't on the removed layers, streams only on the first of them."""
        ids = self._ids(shard)
        common = {"model": self.model_key, "tokens": token_hash(ids), "version": VERSION}
        keys = {"targets": {**common, **self.keeping.key}, "states": {**common, "stream": self.student.entry}}
        return {kind: keys[kind] for kind in self.kinds}


def calls_of_shape(decoder: Decoder, batch: int, tokens: int) -> dict[int, LayerCall]:
    """What layers are given beside the stream, for any tokens of a shape.

    Masks, positions and rotary tables follow from the shape alone in nearly every family. That isn't believed but
    tried: two passes over different tokens must give the same.

    Raises:
        ModelError: they depend on the tokens.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, batch, tokens)
    first, second = (
        record(decoder, ids, {decoder.num_layers}).calls
        for ids in torch.randint(decoder.vocab_size, shape, generator=generator)
    )
    if not all(_same((call.args, call.kwargs), (second[i].args, second[i].kwargs)) for i, call in first.items()):
        raise ModelError(
            f"{type(decoder.model).__name__} passes its layers token-dependent inputs besides the hidden states, which "
            "cached targets don't contain. Use distill.targets=online."
        )
    return first


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(value, second[name]) for name, value in first.items())
    if isinstance(first, (bool, int, float, str)):
        return bool(first == second)
    return type(first) is type(second)


@lru_cache(maxsize=2)
def order_of_epoch(count: int, epoch: int, seed: int) -> tuple[int, ...]:
    """A random order in which groups of `SHARD` sequences stay together, so that few files are open at a time."""
    generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)  # far from other seeds' orders
    groups = torch.arange(count).split(SHARD)
    shuffled = [groups[int(index)] for index in torch.randperm(len(groups), generator=generator)]
    inside = [group[torch.randperm(len(group), generator=generator)] for group in shuffled]
    return tuple(torch.cat(inside).tolist())
