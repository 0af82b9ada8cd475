"""Damaged streams of every kind: no hang, no memory without bounds, no traceback."""

from __future__ import annotations

from typing import Any

from tests.fuzz.damaged import KINDS, READERS, run


def test_damaged_variants(streams: Any) -> None:
    """Broken: a damaged file would hang the tools, exhaust the host, or end in a traceback."""
    figures = run([streams.whole, streams.small], 160)
    assert figures.variants.total() == 160
    assert len(figures.variants) >= max(len(KINDS), len(READERS))
