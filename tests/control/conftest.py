"""Guests and services for a test, which end with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vmferry.guest.synthetic import SyntheticGuest

from tests.control.serving import Serve, Serving


@pytest.fixture
def guest() -> Iterator[SyntheticGuest]:
    """A small one."""
    guest = SyntheticGuest.parse("8M")
    yield guest
    guest.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts services, and ends them."""
    started: list[Serving] = []

    def start(guest: str, *options: str) -> Serving:
        started.append(Serving(tmp_path / f"service{len(started)}", guest, *options))
        return started[-1]

    yield start
    for service in started:
        service.stop()
