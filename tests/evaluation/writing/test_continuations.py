"""Repetition and distance of continuations, against definitions computed directly."""

import pytest

from linearpatch.evaluation.writing.continuations import (
    agreement,
    edit_distance,
    first_difference,
    is_in_loop,
    repeated_share,
)


def test_repeated_4grams():
    assert repeated_share([1, 2, 3, 4, 5, 6]) == 0
    assert repeated_share([7] * 10) == 1 - 1 / 7
    assert repeated_share([1, 2, 3, 4, 9, 1, 2, 3, 4]) == pytest.approx(1 - 5 / 6)
    assert repeated_share([1, 2, 3]) == 0


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (list(range(40)), False),
        ([*range(20), *([5] * 12)], True),
        ([*range(20), *([5] * 11)], False),  # too short to be sure
        ([*range(20), *([1, 2, 3, 4, 5] * 3)], True),
        ([*range(20), *([1, 2, 3, 4, 5] * 2)], False),
        ([*([1, 2, 3, 4, 5] * 3), *range(20)], False),  # it found its way out
        ([], False),
    ],
)
def test_a_loop_is_run_through_three_times_at_the_end(tokens, expected):
    assert is_in_loop(tokens) is expected


@pytest.mark.parametrize(
    ("first", "second", "place", "distance"),
    [
        ([1, 2, 3], [1, 2, 3], 3, 0.0),
        ([1, 2, 3], [1, 9, 3], 1, 1 / 3),
        ([1, 2, 3], [1, 2], 2, 1 / 3),
        ([1, 2, 3, 4], [2, 3, 4, 1], 0, 0.5),
        ([], [1, 2], 0, 1.0),
        ([], [], 0, 0.0),
    ],
)
def test_distances(first, second, place, distance):
    assert first_difference(first, second) == first_difference(second, first) == place
    assert agreement(first, second) == (place / max(len(first), len(second)) if first or second else 1)
    assert edit_distance(first, second) == pytest.approx(distance)
    assert edit_distance(second, first) == pytest.approx(distance)
