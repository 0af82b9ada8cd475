"""Damaged streams of every kind: no hang, no memory without bounds, no traceback."""

from __future__ import annotations

from tests import streams
from tests.fuzz.damaged import KINDS, READERS, run


def test_damaged_variants() -> None:
    """Broken: a damaged file would hang the tools, exhaust the host, or end in a traceback."""
    figures = run([streams.WHOLE, streams.SMALL], 160)
    assert figures.variants.total() == 160
    assert len(figures.variants) >= max(len(KINDS), len(READERS))
