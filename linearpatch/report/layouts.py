"""The tables of the report, laid out as the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from linearpatch.evaluation.averages import AVERAGES
from linearpatch.report.compare import compare
from linearpatch.report.differences import Ties
from linearpatch.report.names import pruner_name
from linearpatch.report.published import Published
from linearpatch.report.quantities import (
    Dense,
    Entry,
    Quantity,
    Reading,
    all_metrics,
    first_of,
    mean,
    metric,
    ratio_of,
    retained,
)
from linearpatch.report.rows import Row, Variant
from linearpatch.report.tables import Cell, Column, Line, Table
from linearpatch.results.metric import DEFINITIONS, Metric
from linearpatch.results.settings import distinguishing_settings
from linearpatch.text import removal_list

CORPORA = {"wikitext2": "WikiText-2", "c4": "C4", "ptb": "PTB"}
TASKS = {
    "arc_challenge": "ARC-c", "arc_easy": "ARC-e", "boolq": "BoolQ", "hellaswag": "HeSw", "piqa": "PIQA",
    "winogrande": "WG", "wsc273": "WSC", "race": "Race-h", "copa": "CoPa",
    "humanities": "Humanities", "social_sciences": "Social sciences", "stem": "STEM", "other": "Other",
}  # fmt: skip
SUITES = {"qa": "Question answering", "mmlu": "MMLU", "smoke": "Smoke suite", "generation": "Generation"}
RATES = ("speed/prefill_tokens_per_s", "speed/decode_tokens_per_s")
SPEED = {
    "prefill_tokens_per_s": "Prefill tokens/s", "decode_tokens_per_s": "Decode tokens/s", "prefill_s": "Prefill ms",
    "decode_step_s": "Decode ms/token", "peak_memory_bytes": "Memory MiB", "num_parameters": "Parameters M",
    "prefill_flops": "Prefill GFLOP", "kv_cache_bytes_per_token": "KV cache KiB/token",
}  # fmt: skip
MOST_TASKS = 24  # an evaluation of more tasks shows its groups


def paper_tables(
    entries: Sequence[Entry], published: Sequence[Published] = (), ties: Ties | None = None
) -> list[Table]:
    """Every table that has a number: perplexity, one for each suite of tasks, speed."""
    rows = [row for entry in entries for row in entry.rows]
    dense, known = Dense.among(rows), all_metrics(rows)
    corpora = [name for name in known if name.startswith("ppl/")]
    averaged = any(row.variant.stage != "dense" and mean(corpora)(row) for row in rows)
    columns = [*perplexity_columns(known, published, dense, averaged=averaged), PARAMETERS]
    tables = [compare("perplexity", "Perplexity", columns, entries, published, ties=ties)]
    for suite in dict.fromkeys(
        [*suites_of(known), *suites_of(key for published_row in published for key in published_row.values)]
    ):
        columns = [*suite_columns(suite, known, published), PARAMETERS]
        title = f"{SUITES.get(suite, suite)}, %"
        note = "RP: retained performance, the mean of the tasks' shares of dense, %"
        notes = [note] if any(column.title == "RP" for column in columns) else []
        tables.append(compare(suite, title, columns, entries, published, notes, ties=ties))
    for shape in dict.fromkeys(name.rpartition("/")[0] for name in known if name.startswith("speed/")):
        columns = speed_columns(shape, known)
        title = " ".join(["Speed", *shape.split("/")[1:]])
        tables.append(compare(shape.replace("/", "_"), title, columns, entries))
    return [table for table in tables if table]


def perplexity_columns(
    known: Mapping[str, Metric],
    published: Sequence[Published] = (),
    dense: Dense | None = None,
    *,
    averaged: bool = False,
) -> list[Column]:
    """One for each corpus, and how many times dense's it is.

    Args:
        known: The metrics.
        published: What was published.
        dense: The dense models.
        averaged: Whether some pruned model has all corpora, so that an average stands for them.
    """
    published_keys = {key: None for row in published for key in row.values if key.startswith("ppl/")}
    names = [
        name for name in dict.fromkeys([*known, *published_keys]) if name.startswith("ppl/") and name != "ppl/average"
    ]
    names.sort(key=lambda name: _place(CORPORA, name.partition("/")[2]))
    columns = [Column.of(name, CORPORA.get(name[4:], name[4:]), metric(name), "", metric=name) for name in names]
    dense = dense or Dense()
    if len(names) > 1 and (averaged or "ppl/average" in published_keys):
        columns.append(Column.of("ppl/average", "Avg.", mean(names), "", derived=True))
        columns.append(_times_dense("ppl/times_dense", "Avg. × dense", dense.times(mean(names))))
        return columns
    times = [_times_dense(f"{name}_times_dense", "× dense", dense.times(metric(name))) for name in names]
    return [column for pair in zip(columns, times, strict=True) for column in pair]


def suite_columns(suite: str, known: Mapping[str, Metric], published: Sequence[Published] = ()) -> list[Column]:
    """One for each task, or for each group where tasks are many; the average and what is retained of it."""
    average = next((name for name in (f"{suite}/paper", f"{suite}/acc") if name in known), "")
    parts = dict.fromkeys(part for name in known if name == average for part in known[name].parts or ())
    names = [name for name in known if name.startswith(f"{suite}/") and name.count("/") == 2]
    groups = [name for name in names if known[name].parts]
    if groups:
        names = groups
    elif parts and len(parts) > MOST_TASKS:
        names = []
    kinds = AVERAGES[average.rpartition("/")[2] or "paper"]
    tasks = dict.fromkeys(name.split("/")[1] for name in names if known[name].unit == "share")
    aside = {"average", "retained"}
    tasks |= {
        key.split("/")[1]: None
        for row in published
        for key in row.values
        if key.startswith(f"{suite}/") and key.split("/")[1] not in aside
    }
    columns = [
        Column.of(f"{suite}/{task}", TASKS.get(task, task), first_of(_ordered(suite, task, names, kinds)), "share")
        for task in sorted(tasks, key=lambda task: _place(TASKS, task))
    ]
    if average or any(f"{suite}/{name}" in row.values for row in published for name in aside):
        columns.append(Column.of(f"{suite}/average", "Avg.", metric(average), "share", metric=average))
        columns.append(Column.of(f"{suite}/retained", "RP", retained(average), "share", metric=average))
    return columns


def speed_columns(shape: str, known: Mapping[str, Metric]) -> list[Column]:
    """Rates with their ratio to dense's, times, memory and size."""
    columns = []
    for name, title in SPEED.items():
        key = f"{shape}/{name}"
        if key in known:
            columns.append(Column.of(key, title, metric(key), known[key].unit))
        if key in known and name.endswith("_per_s"):
            columns.append(Column(f"{key}_times_dense", "× dense", ratio_of(key), "times", derived=True))
    return columns


def cost_columns(rows: Sequence[Row]) -> list[Column]:
    """What a model costs: parameters, and the KV cache, latencies and memory of each shape that was measured."""
    known = all_metrics(rows)
    titles = {
        "kv_cache_bytes_per_token": "KV cache, KiB a token", "decode_step_s": "Decode, ms a token",
        "prefill_s": "Prefill, ms", "peak_memory_bytes": "Memory, MiB",
    }  # fmt: skip
    columns = [PARAMETERS]
    for end, title in titles.items():
        for key in (key for key in known if key.startswith("speed/") and key.endswith(f"/{end}")):
            shape = " ".join(key.split("/")[1:-1])
            columns.append(Column.of(key, f"{title} ({shape})" if shape else title, metric(key), known[key].unit))
    return columns


def headline_columns(known: Mapping[str, Metric], dense: Dense) -> list[Column]:
    """What stands for each evaluation: perplexities, averages over tasks with what is retained, the main speeds."""
    perplexities = perplexity_columns(known, dense=dense)
    columns = [column if column.derived else replace(column, title=f"ppl {column.title}") for column in perplexities]
    for suite in suites_of(known):
        columns += [replace(c, title=f"{SUITES.get(suite, suite)} {c.title}") for c in suite_columns(suite, known)[-2:]]
    return columns + [column for column in speed_columns("speed", known) if column.key in RATES]


def _num_parameters(row: Row) -> Reading:
    return Reading(float(row.num_parameters), "", "")


PARAMETERS = Column("parameters", "Parameters, M", _num_parameters, "count", derived=True)


def ablation_table(entries: Sequence[Entry], ties: Ties | None = None) -> Table | None:
    """Entries that differ in settings only, each setting in a column of its own; None where there are no such."""
    alike: dict[Variant, list[Entry]] = {}
    for entry in entries:
        if not entry.is_dense:
            alike.setdefault(replace(entry.variant, settings=()), []).append(entry)
    groups = [own for own in alike.values() if len({entry.variant.settings for entry in own}) > 1]
    settings = [[dict(entry.variant.settings) for entry in own] for own in groups]
    names = dict.fromkeys(name for of_group in settings for name in distinguishing_settings(of_group))
    varied = [entry for own in groups for entry in own]
    rows = [row for entry in entries for row in entry.rows]
    columns = headline_columns(all_metrics(rows), Dense.among(rows))
    return compare(
        "ablation", "Ablation: runs that differ in these settings", columns, varied, apart=list(names), ties=ties
    )


def retained_table(entries: Sequence[Entry]) -> Table | None:
    """Retained performance in both published definitions, with the intervals of the records."""
    rows = [row for entry in entries for row in entry.rows]
    known = all_metrics(rows)
    kept = dict.fromkeys(name for row in rows for averages in row.retained.values() for name in averages)
    chosen = [name for name in kept if name in known and known[name].headline]
    columns = [
        Column(f"{name}/{definition}", f"{name}, {title}", retained(name, definition), "share", "higher", interval=True)
        for name in chosen or kept
        for definition, title in DEFINITIONS.items()
    ]
    pruned = [entry for entry in entries if entry.variant.stage != "dense"]
    notes = ["[low, high]: 95 % interval over questions, where the record holds it"]
    return compare("retained", "Retained performance, %", columns, pruned, notes=notes)


def layers_table(entries: Sequence[Entry]) -> Table | None:
    """Which layers are removed, and by what: a line for each distinct set."""
    lines = []
    for model in dict.fromkeys(entry.variant.model for entry in entries):
        own = [entry for entry in entries if entry.variant.model == model]
        for layers, words in layer_sets(own):
            group = (model, f"{len(layers)}/{own[0].variant.num_layers}")
            lines.append(Line((*group, words), (Cell(removal_list(layers)),), group))
    heads = ("model", "layers", "removed by")
    table = Table("layers", "Removed layers", heads, ("removed layers",), tuple(lines), keys=("removed_layers",))
    return table if lines else None


def layer_sets(entries: Sequence[Entry]) -> list[tuple[tuple[int | str, ...], str]]:
    """Each distinct set of removed layers with who removes it, by size: in the fewest words that mean one set."""
    removed = [
        (entry, row.seed, tuple(sorted(row.removed, key=_in_order)))
        for entry in entries
        if not entry.is_dense
        for row in entry.rows
    ]
    meant: dict[tuple[int, str], set[tuple[int | str, ...]]] = {}
    for entry, seed, layers in removed:
        for words in _called(entry, seed):
            meant.setdefault((len(layers), words), set()).add(layers)
    rows: dict[tuple[int | str, ...], dict[str, None]] = {}
    for entry, seed, layers in removed:
        called = _called(entry, seed)
        words = next((words for words in called if len(meant[len(layers), words]) == 1), called[-1])
        rows.setdefault(layers, {})[words] = None
    named = [(layers, ", ".join(words)) for layers, words in rows.items()]
    return sorted(named, key=lambda row: (len(row[0]), row[1]))


def _in_order(unit: int | str) -> tuple[int, str]:
    """Layers in the order of the model, attention before MLP."""
    layer, _, part = str(unit).partition(".")
    return int(layer), part


def _called(entry: Entry, seed: int) -> tuple[str, ...]:
    """What removes an entry's layers, in ever more words; patches rarely matter to what is removed."""
    pruner = pruner_name(entry.variant)
    return pruner, f"{pruner}, seed {seed}", entry.name, f"{entry.name}, seed {seed}"


def metric_title(name: str) -> str:
    """A metric in words.

    >>> metric_title("ppl/wikitext2"), metric_title("qa/paper"), metric_title("qa/boolq/acc")
    ('Perplexity on WikiText-2', 'Question answering average', 'Question answering BoolQ')
    """
    suite, _, rest = name.partition("/")
    if suite == "ppl":
        return f"Perplexity on {CORPORA.get(rest, rest)}"
    if suite == "divergence" and rest.endswith("/kl"):
        corpus = rest.removesuffix("/kl")
        return f"KL divergence from dense on {CORPORA.get(corpus, corpus)}"
    task = rest.rpartition("/")[0]
    return f"{SUITES.get(suite, suite)} {TASKS.get(task, task) or 'average'}"


def _times_dense(key: str, title: str, quantity: Quantity) -> Column:
    return Column(key, title, quantity, "times", derived=True)


def suites_of(names: Iterable[str]) -> list[str]:
    """Evaluations that are questions: all but perplexity, speed and diagnostics."""
    prefixes = dict.fromkeys(name.partition("/")[0] for name in names)
    suites = [name for name in prefixes if name not in ("ppl", "speed", "diagnostics")]
    return sorted(suites, key=lambda suite: _place(SUITES, suite))


def _ordered(suite: str, task: str, names: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """The metrics of a task, the one that stands for it first."""
    own = [name for name in names if name.startswith(f"{suite}/{task}/")]
    preferred = [name for kind in kinds for name in own if name == f"{suite}/{task}/{kind}"]
    return [*preferred, *(name for name in own if name not in preferred)]


def _place(known: dict[str, str], name: str) -> tuple[int, str]:
    """What is known in the paper's order, then the rest by name."""
    return (list(known).index(name) if name in known else len(known), name)
