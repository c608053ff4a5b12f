"""How text is generated: free text or conversations, in batches that are kept as they are finished."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import torch

from linearpatch.data.documents import Chat, Document
from linearpatch.errors import DataError
from linearpatch.models.decoder import Decoder
from linearpatch.models.fingerprint import tokenizer_hash
from linearpatch.models.model import LoadedModel
from linearpatch.models.sampling import Sampling, continuations, draws_of, rows_that_fit
from linearpatch.runtime.memory import BatchSize
from linearpatch.runtime.progress import steps
from linearpatch.storage.cache import Cache, Entry
from linearpatch.text import counted

log = logging.getLogger(__name__)

KIND = "generated"  # folder in the cache
MARK = "PLACE-OF-THE-MESSAGE"  # what a template is asked to render, to see what it puts around a message
OnStep = Callable[[float], object]
Messages = list[list[int]]  # tokens of what a sequence says: one text, or a question and an answer


@dataclass(frozen=True)
class Recipe(ABC):
    """How sequences are generated.

    Attributes:
        tokenizer: The model's.
        sampling: How tokens are chosen.
        length: Tokens of a sequence at most.
        name: Of the random numbers.
    """

    version: ClassVar[int] = 1

    tokenizer: Any
    sampling: Sampling
    length: int
    name: str

    @property
    def key(self) -> Mapping[str, Any]:
        """All that the sequences depend on beside the model."""
        sampling = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        draws = {"name": self.name, "length": self.length}
        return {
            "kind": type(self).__name__, "version": self.version, "tokenizer": tokenizer_hash(self.tokenizer),
            **sampling, **draws,
        }  # fmt: skip

    @abstractmethod
    def generate(self, decoder: Decoder, indices: Sequence[int], on_step: OnStep) -> list[Messages]:
        """Generate some sequences together."""

    @abstractmethod
    def documents(self, index: int, messages: Messages) -> list[Document]:
        """The documents in a sequence."""

    @cached_property
    def vocabulary(self) -> int:
        """Tokens from this number on don't exist, though the model may have logits for them."""
        return 1 + int(max(self.tokenizer.get_vocab().values()))

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def draws(self, indices: Sequence[int], message: int = 0) -> torch.Tensor:
        """The random numbers of a message of each sequence."""
        return torch.stack([draws_of(f"{self.name}/{index}/{message}", self.length) for index in indices])


@dataclass(frozen=True)
class FreeText(Recipe):
    """Text that begins with nothing; where a document ends, the next follows in the same sequence.

    Attributes:
        start: The token that begins a document; empty: BOS, or EOS where there is none.
    """

    start: str = ""

    def __post_init__(self) -> None:
        if self.start and self.start not in self.tokenizer.get_vocab():
            special = ", ".join(self.tokenizer.all_special_tokens)
            raise DataError(
                f"corpus.start is {self.start!r}, which is no token of this model's tokenizer. Its special tokens: "
                f"{special}. Leave corpus.start out for BOS."
            )
        if not self.start and self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None:
            raise DataError(
                "This model's tokenizer has neither a BOS nor an EOS token, with which generated text begins. Use "
                "another corpus, or corpus.conversations=true where the model has a chat template."
            )

    def generate(self, decoder: Decoder, indices: Sequence[int], on_step: OnStep) -> list[Messages]:
        """Full sequences, without the token that they begin with."""
        start, end = self._start, self.tokenizer.eos_token_id
        tokens = continuations(
            decoder, [[start]] * len(indices), self.draws(indices), self.sampling, num_tokens=self.length,
            vocabulary=self.vocabulary, start_after=(end, start) if end not in (None, start) else None, on_step=on_step,
        )  # fmt: skip
        return [[each] for each in tokens]

    def documents(self, index: int, messages: Messages) -> list[Document]:
        """What lies between the tokens that end documents."""
        (tokens,) = messages
        bounding = {self.tokenizer.eos_token_id, *([self._start] if self.start else [])}
        ends = [place for place, token in enumerate(tokens) if token in bounding]
        bounds = zip([-1, *ends], [*ends, len(tokens)], strict=True)
        return [self.text(tokens[before + 1 : end]) for before, end in bounds]

    @property
    def key(self) -> Mapping[str, Any]:
        """With the token that begins documents."""
        return {**super().key, "start": self.start}

    @property
    def _start(self) -> int:
        if self.start:
            return int(self.tokenizer.convert_tokens_to_ids(self.start))
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)


@dataclass(frozen=True)
class Conversations(Recipe):
    """A question and its answer, in the chat template.

    Attributes:
        prompts: The questions; where there are fewer than sequences, each is answered several times. Empty: the model
            generates them.
    """

    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                "corpus.conversations=true: this model's tokenizer has no chat template. Use a model with one (as a "
                "rule those named Instruct or Chat), or corpus.conversations=false."
            )
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                "corpus.conversations=true: this model's tokenizer has no EOS token, so that messages never end. Use "
                "corpus.conversations=false."
            )
        longest = max((len(self._tokens(prompt)) for prompt in self.prompts), default=0) + self._overhead
        if longest >= self.length // 2:
            what = "the longest prompt in" if self.prompts else "an empty message in"
            raise DataError(
                f"corpus.length is {self.length}, and {what} the chat template has {longest} tokens, of at most half. "
                f"Set corpus.length to at least {2 * longest + 2}."
            )

    @property
    def key(self) -> Mapping[str, Any]:
        """With the template and the prompts."""
        return {**super().key, "template": self.tokenizer.chat_template, "prompts": list(self.prompts)}

    def generate(self, decoder: Decoder, indices: Sequence[int], on_step: OnStep) -> list[Messages]:
        """Answers, with the questions where the model generates them; each has half of the length."""
        if self.prompts:
            openings = [self._opening(self._prompt(index)) for index in indices]
            return [[answer] for answer in self._continue(decoder, openings, self.draws(indices), on_step)]

        def on_half(count: float) -> None:
            on_step(count / 2)

        before, after = map(self._tokens, self._around)
        questions = self._continue(decoder, [before] * len(indices), self.draws(indices), on_half)
        openings = [[*before, *question, *after] for question in questions]
        answers = self._continue(decoder, openings, self.draws(indices, message=1), on_half)
        return [[question, answer] for question, answer in zip(questions, answers, strict=True)]

    def documents(self, index: int, messages: Messages) -> list[Document]:
        """The conversation; none where a side said nothing."""
        *questions, answer = map(self.text, messages)
        question = questions[0] if questions else self._prompt(index)
        if not question.strip() or not answer.strip():
            return []
        said = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        return [Chat(said, f"generated conversation {index + 1}")]

    def _prompt(self, index: int) -> str:
        return self.prompts[index % len(self.prompts)]

    def _continue(
        self, decoder: Decoder, openings: Sequence[Sequence[int]], draws: torch.Tensor, on_step: OnStep
    ) -> list[list[int]]:
        return continuations(
            decoder, openings, draws, self.sampling, num_tokens=self.length // 2 - self._overhead,
            vocabulary=self.vocabulary, stop=[self.tokenizer.eos_token_id], on_step=on_step,
        )  # fmt: skip

    def _opening(self, prompt: str) -> list[int]:
        before, after = self._around
        return self._tokens(f"{before}{prompt}{after}")

    @cached_property
    def _overhead(self) -> int:
        """Tokens of the template around a message."""
        return sum(len(self._tokens(part)) for part in self._around)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What the template puts before a user's message, and between it and the answer."""
        message = [{"role": "user", "content": MARK}]
        try:
            rendered = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates run code of their own and may raise anything
            raise DataError(
                f"This model's chat template rejects a conversation that begins with the user: {error}. Use "
                "corpus.conversations=false."
            ) from error
        before, mark, after = str(rendered).partition(MARK)
        if not mark:
            raise DataError("This model's chat template leaves out what the user says. Use corpus.conversations=false.")
        return before, after


def sequences(
    recipe: Recipe, model: LoadedModel, cache: Cache, *, number: int, batch_size: int | str, what: str
) -> list[Messages]:
    """Generate sequences, or take them from the cache.

    Each has random numbers of its own, so those that were generated before, by an interrupted generation or for a
    smaller number, are the first of them.

    Args:
        recipe: How.
        model: The dense model.
        cache: Keeps them, each batch as it is finished.
        number: Of the sequences.
        batch_size: Of them at a time, or `auto`.
        what: Is generated, for people.
    """
    key = {"model": model.key, "recipe": recipe.key}
    with cache.locked(KIND, key):
        known = cache.find(KIND, key, remember=False)
        done = _unpacked(known)[:number] if known is not None else []
        if len(done) == number:
            return done
        if done:
            log.info("%s: resumes after %s of %d", what, counted(len(done), "sequence"), number)
        device, first = model.decoder.input_device, min(number, rows_that_fit(model.decoder, recipe.length))
        rows = BatchSize(batch_size, device.type, "corpus", first=first, length="length")
        log.info("%s: generating %s of up to %d tokens", what, counted(number, "sequence"), recipe.length)
        started = time.perf_counter()
        with steps(f"generating {what}", number) as on_step:
            on_step(len(done))
            rest = range(len(done), number)
            for _, batch in rows.over(rest, lambda indices: recipe.generate(model.decoder, indices, on_step)):
                done += batch
                cache.put(KIND, key, _packed(done), remember=False)
        log.info("%s: generated %s in %.0f s", what, counted(number, "sequence"), time.perf_counter() - started)
    return done


def _packed(done: Sequence[Messages]) -> Entry:
    """Sequences as tensors: all tokens in a row, and how many each message has."""
    tokens = [token for messages in done for message in messages for token in message]
    lengths = [[len(message) for message in messages] for messages in done]
    return Entry({"tokens": torch.tensor(tokens, dtype=torch.int32), "lengths": torch.tensor(lengths)})


def _unpacked(entry: Entry) -> list[Messages]:
    tokens = iter(entry.tensors["tokens"].tolist())
    return [[list(islice(tokens, length)) for length in lengths] for lengths in entry.tensors["lengths"].tolist()]
