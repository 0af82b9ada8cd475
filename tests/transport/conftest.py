"""A crew of child processes for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from vmferry.transport.crew import Crew


@pytest.fixture
def crew() -> Iterator[Crew]:
    """Return a crew without children, which ends with the test."""
    wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
    crew = Crew(wake_fd, lambda: None)
    yield crew
    crew.stop()
    os.close(wake_fd)
