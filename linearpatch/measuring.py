"""The public functions that measure a model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from linearpatch.arguments import evaluating
from linearpatch.choices import choices, unknown_choice
from linearpatch.data.in_memory import corpus_of
from linearpatch.data.pydoc import PydocCorpus
from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError, named_as
from linearpatch.evaluation.evaluation import Evaluation, Subject
from linearpatch.evaluation.perplexity import Perplexity
from linearpatch.evaluation.retention import Results, compare
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.model import LoadedModel, check_vocabulary
from linearpatch.registry import components, name_of, resolve
from linearpatch.results.metric import Metric
from linearpatch.storage.cache import Cache


@named_as({"corpus.": ""})
def evaluate(
    model: PreTrainedModel,
    tokenizer: Any,
    evaluation: str | Evaluation = "smoke",
    text: str | Path | Sequence[Any] | Any = None,
    *,
    dense: PreTrainedModel | None = None,
    column: str = "text",
    **settings: Any,
) -> dict[str, Metric]:
    """Measure a model: a dense one, or one that `Edit.apply` gives.

    Args:
        model: Any causal language model.
        tokenizer: Its tokenizer.
        evaluation: Its name or itself; `linearpatch list eval` shows all.
        text: The text, for evaluations that read one, in any form that `tokens` takes; None: Python's documentation.
        dense: The model that it is compared with and that generates text, where an evaluation does so; None: the model
            itself, for evaluations that don't compare.
        column: Of the text, where there are columns.
        settings: Of the evaluation, where it is named.

    Returns:
        Metrics by name; each has `value`, `stderr`, `n` and its protocol.

    Raises:
        ConfigError: there is no such evaluation or setting, or it compares with the dense model, which isn't given.
    """
    name = evaluation if isinstance(evaluation, str) else name_of(evaluation)
    if isinstance(evaluation, str) and evaluation not in components("eval"):
        evaluation = _preset(evaluation)
    with named_as({f"eval.{name}.": ""}):
        chosen = resolve("eval", evaluation, Evaluation, settings)  # type: ignore[type-abstract]
    if dense is None and chosen.needs_dense:
        raise ConfigError(
            f"evaluation={name} compares a model with the dense one. Give that, too: evaluate(model, …, dense=MODEL)"
            f"{f', or {chosen.without_dense}' if chosen.without_dense else ''}."
        )
    reader = Reader(PydocCorpus() if text is None else corpus_of(text, column), "evaluation")
    own = nullcontext() if dense is None else evaluating(dense, prunable=False)
    with evaluating(model, prunable=False) as decoder, own as given:
        reference = given or decoder
        check_vocabulary(decoder, tokenizer)
        check_vocabulary(reference, tokenizer)
        if decoder.vocab_size != reference.vocab_size:
            raise ConfigError(
                f"dense has a vocabulary of {reference.vocab_size:,}, and the model one of {decoder.vocab_size:,}. "
                "Give the dense model that this one was made of."
            )
        results = Results()
        loaded = LoadedModel(reference, tokenizer, weights_hash(reference.model))
        subject = Subject("model", decoder, reference)
        for measurement in chosen.prepare(name, reader)(loaded, Cache()):
            for measured in measurement.run([subject], lambda _: None):
                results.metrics.update(measured.metrics)
                results.answers.update({name: values.double().numpy() for name, values in measured.questions.items()})
    compare({"dense": results}, {name: chosen})  # which adds averages
    return results.metrics


def _preset(name: str) -> Evaluation:
    """An evaluation that is a choice of the configuration, such as `smoke` or `qa`.

    Raises:
        ConfigError: there is no such choice.
    """
    from linearpatch.commands import compose  # it needs Hydra

    if name not in choices("eval"):
        raise unknown_choice("eval", name)
    return compose(f"eval=[{name}]").evaluations[name]


@named_as({"eval.ppl.seq_len": "length", "eval.ppl.num_blocks": "blocks"})
def perplexity(
    model: PreTrainedModel,
    tokenizer: Any,
    text: str | Path | Sequence[Any] | Any,
    *,
    length: int = 2048,
    blocks: int | None = None,
    column: str = "text",
) -> float:
    """Perplexity of a model on a text, joined and read in disjoint windows; of a short text in shorter ones.

    Args:
        model: Any causal language model.
        tokenizer: Its tokenizer.
        text: As of `tokens`.
        length: Tokens in a window; perplexities at different lengths aren't comparable.
        blocks: Only the first so many windows; None reads all.
        column: Of the text, where there are columns.

    Raises:
        DataError: there is next to no text.
    """
    (metric,) = evaluate(model, tokenizer, Perplexity(seq_len=length, num_blocks=blocks), text, column=column).values()
    return float("inf") if metric.value is None else metric.value
