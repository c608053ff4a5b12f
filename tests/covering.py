"""A choice of cases: as few as show all there is."""

from collections.abc import Sequence


def covering(cases: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The cases of which each has a word that those before don't have."""
    seen: set[str] = set()
    chosen = []
    for case in cases:
        if not seen.issuperset(case):
            seen |= set(case)
            chosen.append(case)
    return chosen
