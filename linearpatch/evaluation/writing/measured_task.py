"""Questions put to a model, and what it writes as metrics."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from linearpatch.evaluation.evaluation import Measured, Measurement, Subject
from linearpatch.evaluation.writing.greedy import OnStep, greedy_texts, stop_tokens
from linearpatch.evaluation.writing.questions import Question, WrittenTask
from linearpatch.models.decoder import Decoder
from linearpatch.models.fingerprint import tokenizer_hash
from linearpatch.results.metric import Metric


@dataclass(frozen=True)
class MeasuredTask:
    """Questions of one task that every model is asked.

    Attributes:
        task: The task …
        questions: … and its questions.
        tokenizer: The dense model's.
        batch_size: Questions at a time, or `auto`.
        owner: The section of the configuration that it is in.
    """

    task: WrittenTask
    questions: Sequence[Question]
    tokenizer: Any
    batch_size: int | str
    owner: str

    def measurement(self, name: str, protocol: str, groups: Mapping[str, Sequence[int]] | None = None) -> Measurement:
        """All questions as one measurement.

        Args:
            name: Of its metrics, before their own names, such as `generation/json`.
            protocol: In words.
            groups: Which questions (by index) also have metrics of their own, by the name between both.
        """
        prompts = [list(self.tokenizer(question.prompt).input_ids) for question in self.questions]
        token_hash = hash_of(prompts)
        groups = {"": range(len(prompts)), **(groups or {})}

        def run(subjects: Sequence[Subject], on_step: OnStep) -> list[Measured]:
            results = []
            for subject in subjects:
                scores = self._scores(subject.decoder, prompts, on_step)
                results.append(self._measured(name, protocol, token_hash, scores, groups))
            return results

        answers = [question.answer for question in self.questions]
        key = {
            "version": self.task.version, "task": self.task.name, "prompts": token_hash, "answers": answers,
            "tokenizer": tokenizer_hash(self.tokenizer), "num_tokens": self.task.num_tokens,
        }  # fmt: skip
        return Measurement(name, key, len(prompts), run)

    def _scores(self, decoder: Decoder, prompts: Sequence[Sequence[int]], on_step: OnStep) -> list[Mapping[str, float]]:
        texts = greedy_texts(
            decoder, prompts, num_tokens=self.task.num_tokens, stop=stop_tokens(self.tokenizer, line=True),
            batch_size=self.batch_size, owner=self.owner, on_step=on_step,
        )  # fmt: skip
        return [
            self.task.score(question, self.tokenizer.decode(tokens, skip_special_tokens=True))
            for question, tokens in zip(self.questions, texts, strict=True)
        ]

    def _measured(
        self,
        name: str,
        protocol: str,
        token_hash: str,
        scores: Sequence[Mapping[str, float]],
        groups: Mapping[str, Sequence[int]],
    ) -> Measured:
        metrics: dict[str, Metric] = {}
        questions: dict[str, torch.Tensor] = {}
        documents: dict[str, torch.Tensor] = {}
        hashes = torch.tensor([_number_of(question.prompt) for question in self.questions])
        for group, members in groups.items():
            for metric in self.task.metrics:
                label = "/".join(part for part in (name, group, metric) if part)
                values = torch.tensor([scores[index][metric] for index in members], dtype=torch.float64)
                chance = sum(self.questions[index].chance[metric] for index in members) / len(members)
                metrics[label] = mean_metric(
                    values, protocol, token_hash, unit="share", headline=not group, chance=chance
                )
                questions[label] = values.float()
                documents[label] = hashes[list(members)]
        return Measured(metrics, questions, documents)


def mean_metric(values: torch.Tensor, protocol: str, token_hash: str, **more: Any) -> Metric:
    """The mean of a value at each question, with its standard error."""
    stderr = values.std(correction=1).item() / len(values) ** 0.5 if len(values) > 1 else None
    return Metric.of(values.mean().item(), stderr, len(values), protocol, token_hash, counted="questions", **more)


def hash_of(prompts: Sequence[Sequence[int]]) -> str:
    """Hash of the tokens of prompts, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for tokens in prompts:
        digest.update(array("i", tokens).tobytes() + b"|")
    return digest.hexdigest()[:16]


def _number_of(text: str) -> int:
    """A question as a number: a hash of 60 bits."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
