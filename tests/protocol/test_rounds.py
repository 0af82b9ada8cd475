"""Telling the rounds of a stream apart."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol.pages.rounds import MOST_ROUNDS, Rounds

PAGES = st.lists(st.sampled_from([0, 1, 2, 3, (1 << 18) - 1, 1 << 18, 5 << 20]), max_size=12)
RUNS = st.lists(st.tuples(st.integers(0, 1), PAGES.filter(bool)), max_size=12)


def _one_by_one(runs: list[tuple[int, list[int]]]) -> list[int]:
    """Return the round of each page."""
    found: list[int] = []
    sent: set[tuple[int, int]] = set()
    current = 0
    for block, numbers in runs:
        for number in numbers:
            if (block, number) in sent:
                current, sent = current + 1, set()
            sent.add((block, number))
            found.append(current)
    return found


@given(RUNS)
def test_a_page_comes_once_in_a_round(runs: list[tuple[int, list[int]]]) -> None:
    """Broken: people would be told of rounds that are none, or pages would count for another."""
    rounds, found = Rounds(), []
    for block, numbers in runs:
        for number, count in rounds.split(block, np.array(numbers, np.intp)):
            found += [number] * count
    assert found == _one_by_one(runs)


def test_rounds_without_end() -> None:
    """Broken: a stream of nothing but repetitions would take memory for each of them."""
    rounds = Rounds()
    numbers = np.zeros(3 * MOST_ROUNDS, np.intp)
    found = list(rounds.split(0, numbers))
    assert found[-1][0] == rounds.current == MOST_ROUNDS - 1
    assert sum(count for _, count in found) == len(numbers)
    assert len(found) <= len(numbers)


def test_intervals() -> None:
    """Broken: a round would end wherever channels overtake each other."""
    rounds = Rounds()
    first = list(rounds.split_interval(0, np.arange(10)))
    rounds.end_interval()
    # The end of a round and the beginning of the next, in any order.
    second = list(rounds.split_interval(0, np.array([3, 20, 1, 21])))
    again = list(rounds.split_interval(1, np.array([3, 2])))
    rounds.end_interval()
    third = list(rounds.split_interval(0, np.array([5, 4])))
    assert (first, second) == ([(0, 10)], [(0, 2), (1, 2)])
    assert (again, third) == ([(0, 2)], [(1, 2)])
    assert rounds.current == 1
