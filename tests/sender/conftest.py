"""A receiver for the tests of the sender."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sender.incoming import Incoming


@pytest.fixture
def incoming() -> Iterator[Incoming]:
    """Return a receiver that listens, and end it with the test."""
    with Incoming() as made:
        yield made
