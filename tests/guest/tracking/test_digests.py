"""Test what only the digest tracker does."""

from __future__ import annotations

import numpy as np
from vmferry.guest.tracking.digests import DigestTracker, page_digests
from xxhash import xxh3_128_digest

PAGE_SIZE = 4096


def test_zero_that_is_still_zero_is_clean() -> None:
    """Broken: all memory that a guest never used would be sent in every round."""
    tracker = DigestTracker(8, PAGE_SIZE)
    taken = tracker.take_dirty(0, 8)
    tracker.sent_zero(np.arange(3))
    assert tracker.changed_to_zero(0, taken).tolist() == [False] * 3 + [True] * 5


def test_digests_are_xxh3_128() -> None:
    """Broken: digests would not be comparable with those of other programs."""
    ram = np.random.default_rng(3).integers(1, 256, (8, PAGE_SIZE), np.uint8)
    assert page_digests(ram)[3].tobytes() == xxh3_128_digest(ram[3].tobytes())
    behind_headers = np.zeros((8, 8 + PAGE_SIZE), np.uint8)
    behind_headers[:, 8:] = ram
    assert (page_digests(behind_headers[:, 8:]) == page_digests(ram)).all()
