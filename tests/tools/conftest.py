"""The command line, for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.running import Vmferry


@pytest.fixture
def vmferry(tmp_path: Path) -> Vmferry:
    """Return what runs the command, with a folder for its files."""
    return Vmferry(tmp_path)
