"""Guests and services for a test, which end with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from vmferry.guest.synthetic import SyntheticGuest

from tests.control.serving import Serve, Serving


@pytest.fixture
def guest() -> Iterator[SyntheticGuest]:
    """Return a small guest."""
    guest = SyntheticGuest.parse("8M")
    yield guest
    guest.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Yield a function that starts services, and end them."""
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(guest: str, *options: str) -> Serving:
            service = Serving(tmp_path / f"service{next(numbers)}", guest, *options)
            stack.callback(service.stop)
            return service

        yield start
