"""Sets of pages at a bit a page."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from vmferry.tools.rebuild.page_ranges import PageRanges
from vmferry.tools.rebuild.page_set import PageSet

COUNT = 100
NUMBERS = st.integers(0, COUNT - 1)
STEPS = st.lists(
    st.one_of(
        st.lists(NUMBERS, min_size=1, max_size=60).map(lambda some: ("add", some)),
        st.tuples(NUMBERS, NUMBERS).map(lambda both: ("remove", sorted(both))),
    )
)


@given(STEPS)
def test_as_a_set(steps: list[tuple[str, list[int]]]) -> None:
    """Broken: a page that arrived would count as missing, or one that is missing would not."""
    pages, expected = PageSet(COUNT), set[int]()
    for what, numbers in steps:
        if what == "add":
            pages.add(np.array(numbers, np.intp))
            expected |= set(numbers)
        else:
            pages.remove(*numbers)
            expected -= set(range(*numbers))
    found = set()
    for start, end, mask in pages.absent():
        absent = np.ones(end - start, np.bool_) if mask is None else mask
        found |= set((start + np.flatnonzero(absent)).tolist())
    assert found == set(range(COUNT)) - expected


def test_large_steps() -> None:
    """Broken: what is removed of a block of many GiB would begin or end at a wrong page."""
    pages = PageSet(5 << 20)
    for start in range(0, 5 << 20, 1 << 20):
        pages.add(np.arange(start, start + (1 << 20)))
    pages.remove(12345, (3 << 20) + 7)
    ranges = PageRanges(1)
    for start, end, mask in pages.absent():
        if mask is None:
            ranges.add_all(start, end)
        else:
            ranges.add(start, mask)
    assert ranges.first == [(12345, (3 << 20) + 7)]
    assert ranges.count == (3 << 20) + 7 - 12345
