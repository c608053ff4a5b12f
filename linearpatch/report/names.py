"""What figures and matrices call a recipe: its components, and the settings in which it differs from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from linearpatch.registry import title_of
from linearpatch.report.rows import Row, Variant
from linearpatch.text import removal_list

MOST_LAYERS = 40  # characters
UNITS = {"mlp": "MLP"}  # in titles


def recipe_name(variant: Variant) -> str:
    """The components by their titles; settings in brackets."""
    if variant.stage == "dense":
        name = "dense"
    else:
        patch = "" if variant.patch in ("", "none") else title_of("patch", variant.patch)
        distill = "" if variant.distill in ("", "none") else title_of("distill", variant.distill)
        name = " + ".join(part for part in (pruner_name(variant), patch, distill) if part)
    return f"{name} ({variant.settings_text})" if variant.settings else name


def pruner_name(variant: Variant) -> str:
    """The pruner's title, and the sublayers that it chose among."""
    method, _, unit = variant.pruner.partition(" ")
    return " ".join(part for part in (title_of("pruner", method), UNITS.get(unit, unit)) if part)


def removed_words(variants: Iterable[Variant]) -> str:
    """What the numbers of some variants count."""
    kinds = {" " in variant.pruner for variant in variants if variant.stage != "dense"}
    return {1: "sublayers", 2: "layers or sublayers"}[len(kinds)] + " removed" if True in kinds else "layers removed"


def names_of(entries: Sequence[tuple[Variant, Sequence[Row]]]) -> list[str]:
    """The names of some entries; of those alike in everything recorded, with their layers or the id of their run."""
    names = [recipe_name(variant) for variant, _ in entries]
    places = [(variant.model, variant.num_removed, name) for (variant, _), name in zip(entries, names, strict=True)]
    for repeated in [place for place, count in Counter(places).items() if count > 1]:
        own = [at for at, place in enumerate(places) if place == repeated]
        layers = [removal_list(entries[at][1][0].removed) for at in own]
        distinct = len(set(layers)) == len(own) and max(map(len, layers)) <= MOST_LAYERS
        for at, text in zip(own, layers, strict=True):
            names[at] += f" [{f'layers {text}' if distinct else entries[at][1][0].runs[0]}]"
    return names
