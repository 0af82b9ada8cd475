"""Test how zero pages are found."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.guest.zero import zero_mask

PAGE_SIZE = 4096
PLACES = st.none() | st.integers(0, PAGE_SIZE - 1)


@given(st.lists(PLACES, min_size=1, max_size=40), st.integers(0, 8))
@settings(deadline=None, max_examples=60)
def test_mask_says_what_bytes_say(places: list[int | None], gap: int) -> None:
    """Broken: a page with one byte set anywhere would be sent as zero, or the other way round."""
    # The pages stand `gap` bytes apart, as they do behind the headers of records.
    room = np.full((len(places), PAGE_SIZE + gap), 0xFF, np.uint8)
    pages = room[:, :PAGE_SIZE]
    pages[:] = 0
    for number, place in enumerate(places):
        if place is not None:
            pages[number, place] = 1
    assert zero_mask(pages).tolist() == [place is None for place in places]


def test_mask_of_nothing() -> None:
    """Broken: a chunk with no candidates would be an error."""
    assert zero_mask(np.zeros((0, PAGE_SIZE), np.uint8)).shape == (0,)
