"""Where lessons come from: the dense model at every step, or what it said before, kept on disk."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from linearpatch.cache import Cache, Entry
from linearpatch.distillation.distillation import Keeping, Lesson, Training
from linearpatch.distillation.student import Student
from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder, LayerCall
from linearpatch.models.passes import record

# Sequences in one file of targets. Orders of training shuffle within and between such groups, so that files are
# read one after the other.
SHARD = 32


class Source(ABC):
    """Makes lessons of sequences.

    Args:
        training: The loss, which says what is taught.
        student: For where it begins.
        ids: The sequences, `[sequences, tokens]`.
    """

    def __init__(self, training: Training, student: Student, ids: Tensor) -> None:
        self.training = training
        self.student = student
        self.ids = ids

    @abstractmethod
    def lesson(self, rows: Sequence[int]) -> Lesson:
        """The lesson on some sequences."""


class Online(Source):
    """The dense model runs for every lesson, once and without gradients."""

    def lesson(self, rows: Sequence[int]) -> Lesson:
        """One pass gives the stream where the student begins, what is given beside it, and the targets."""
        decoder, entry = self.student.decoder, self.student.entry
        wanted = self.training.streams(self.student)
        recording = record(decoder, self.ids[list(rows)], wanted | {entry})
        targets = self.training.teach(decoder, {index: recording.streams[index] for index in wanted})
        return Lesson(recording.streams[entry], recording.calls, targets)


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
        student: Student,
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

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return -(-len(self.ids) // SHARD)

    def prepare(self, shards: Sequence[int], on_step: Callable[[], None]) -> None:
        """Make the files that don't exist yet."""
        for shard in shards:
            self._load(shard)
            on_step()

    def lesson(self, rows: Sequence[int]) -> Lesson:
        """Read targets, and streams or else run the layers before the student's."""
        found = [{name: values[row % SHARD] for name, values in self._shard(row // SHARD).items()} for row in rows]
        decoder = self.student.decoder
        device = decoder.input_device
        stacked = {name: torch.stack([one[name] for one in found]).to(device) for name in found[0]}
        if "stream" in stacked:
            stream = stacked.pop("stream").to(decoder.model.dtype)
        else:
            stream = record(decoder, self.ids[list(rows)], {self.student.entry}).streams[self.student.entry]
        return Lesson(stream, self._calls(len(rows)), stacked)

    def _load(self, shard: int) -> dict[str, Tensor]:
        """The tensors of one file by name, `[sequences, …]`; a damaged file is made anew."""
        ids = self.ids[shard * SHARD : (shard + 1) * SHARD]
        keys = {kind: self._key(kind, ids) for kind in self.kinds}
        with self.cache.locked("targets", keys["targets"]):
            found = {kind: self.cache.find(kind, key, remember=False) for kind, key in keys.items()}
            missing = [kind for kind, entry in found.items() if entry is None]
            if missing:
                for kind, tensors in self._make(ids).items():
                    if kind in missing:
                        found[kind] = Entry(tensors)
                        self.cache.put(kind, keys[kind], Entry(tensors), remember=False)
        return {name: tensor for entry in found.values() if entry for name, tensor in entry.tensors.items()}

    def _make(self, ids: Tensor) -> dict[str, dict[str, Tensor]]:
        """Targets and streams of some sequences, from the dense model."""
        online = Online(self.training, self.student, ids)
        lessons = [online.lesson([row]) for row in range(len(ids))]
        targets = {name: torch.cat([one.targets[name].cpu() for one in lessons]) for name in lessons[0].targets}
        if "states" not in self.kinds:
            return {"targets": targets}
        streams = torch.cat([one.stream.to(torch.bfloat16).cpu() for one in lessons])
        return {"targets": targets, "states": {"stream": streams}}

    def _key(self, kind: str, ids: Tensor) -> dict[str, Any]:
        tokens = hashlib.sha256(repr(tuple(ids.shape)).encode() + ids.contiguous().numpy().tobytes()).hexdigest()
        key = {"model": self.model_key, "tokens": tokens}
        if kind == "states":
            return {**key, "stream": self.student.entry}
        return {**key, **self.keeping.key}

    @cached_property
    def _calls(self) -> Callable[[int], dict[int, LayerCall]]:
        tokens = self.ids.shape[1]
        return lru_cache(maxsize=4)(lambda batch: calls_of_shape(self.student.decoder, batch, tokens))


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
            f"{type(decoder.model).__name__} gives its layers more than the stream that depends on the tokens, so "
            "cached targets don't suffice to run some of them. Use distill.targets=online."
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
