"""Receivers for the tests of multifd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.receiver.multifd.arriving import Arriving, Start


@pytest.fixture
def receive(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a receiver for this number of channels."""
    started: list[Arriving] = []

    def start(channels: int | None = 2, workers: int | None = None) -> Arriving:
        started.append(Arriving(tmp_path, channels, workers))
        return started[-1]

    yield start
    for arriving in started:
        arriving.close()
