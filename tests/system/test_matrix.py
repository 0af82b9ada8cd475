"""Every encoding with every number of workers, link and kind of writes: memory equal, every time.

All combinations take minutes, so they are an environment of tox of their own; else those are run
in which every two values come together once.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from itertools import combinations, product
from typing import NamedTuple

import pytest
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.synthetic_memory import PATTERNS, TEXT_PATTERNS
from vmferry.sender.coordinator import Sender
from vmferry.sender.figures import Figures
from vmferry.sender.parameters import SendParameters
from vmferry.transport.settings import OnStall

from tests.sender.incoming import Incoming

ENCODINGS = {
    "plain": SendParameters(),
    "xbzrle": SendParameters(xbzrle=True),
    "zstd": SendParameters(compress="zstd"),
    "xbzrle+zstd": SendParameters(xbzrle=True, compress="zstd"),
    "adaptive": SendParameters(compress="adaptive"),
}
WORKERS = (1, 2, 4)
LINKS = (50 << 20, 500 << 20, 0)
"""Bytes per second; 0: no limit."""


class Case(NamedTuple):
    """Indexes into ENCODINGS, WORKERS, LINKS and PATTERNS."""

    encoding: int
    workers: int
    link: int
    pattern: int

    def __str__(self) -> str:
        link = LINKS[self.link]
        speed = "unlimited" if not link else f"{link >> 20}M"
        encoding = list(ENCODINGS)[self.encoding]
        return f"{encoding}-{WORKERS[self.workers]}-{speed}-{PATTERNS[self.pattern]}"


def cases() -> list[Case]:
    """Return all cases, or those in which every two values occur together."""
    encodings, patterns = range(len(ENCODINGS)), range(len(PATTERNS))
    if "VMFERRY_FULL_MATRIX" in os.environ:
        every = product(encodings, range(len(WORKERS)), range(len(LINKS)), patterns)
        return [Case(*indexes) for indexes in every]
    # Three workers and three links go round with the other two at different speeds.
    pairs = product(encodings, patterns)
    return [Case(one, (one + two) % 3, (one + 2 * two) % 3, two) for one, two in pairs]


def test_every_two_values_come_together() -> None:
    """Broken: an encoding would never be tried with some link or number of workers."""
    values = [range(len(axis)) for axis in (ENCODINGS, WORKERS, LINKS, PATTERNS)]
    for one, two in combinations(range(4), 2):
        assert {(case[one], case[two]) for case in cases()} == set(
            product(values[one], values[two])
        )


@pytest.mark.parametrize("case", cases(), ids=str)
def test_memory_is_equal(case: Case) -> None:
    """Broken: with this encoding, on this link, the guest would arrive damaged."""
    encoding = list(ENCODINGS)[case.encoding]
    workers, pattern = WORKERS[case.workers], PATTERNS[case.pattern]
    parameters = replace(
        ENCODINGS[encoding],
        max_bandwidth=LINKS[case.link],
        workers=workers,
        downtime_limit=0.01,
        on_stall=OnStall.SWITCHOVER,
    )
    guest = SyntheticGuest.parse(f"16M,dirty-rate=80M,hot=6M,zero=10%,pattern={pattern}")
    with Incoming(workers=workers) as side, closing(guest) as source:
        figures = Sender(source, side.address, parameters).run()
        side.arrives(source)
    check_encoding(figures, encoding, pattern)


def check_encoding(figures: Figures, encoding: str, pattern: str) -> None:
    """Check that the encoding was really used."""
    if "zstd" in encoding:
        assert figures.compression is not None
        assert (figures.compression.rate > 1.5) == (pattern in TEXT_PATTERNS)
    if "xbzrle" in encoding and pattern == "sparse":
        assert figures.xbzrle is not None
        assert figures.dirty_sync_count < 4 or figures.xbzrle.pages > 100
