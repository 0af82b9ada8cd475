"""The log of commands that run for long: one line an event, where the user asks for it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from vmferry.transport.crew import Crew, CrewError
from vmferry.transport.shared import Wakeup

LINE = re.compile(r"[-\d]+ [:,\d]+ INFO vmferry\.sender\.coordinator: (\w+) -> (\w+)")


def test_states(vmferry: Any) -> None:
    """Broken: nobody could see afterwards when a migration went from one state to the next."""
    command = ("send", f"file:{vmferry.folder}/stream", "--guest", "synthetic:1M")
    logged = vmferry.run(*command, "--log-level", "info")
    assert logged.status == 0
    found = [match.groups() for line in logged.err.splitlines() if (match := LINE.fullmatch(line))]
    assert found == [("none", "setup"), ("setup", "active"), ("active", "completed")]
    assert "INFO" not in vmferry.run(*command).err


def fail(_: Any) -> None:
    """Fail in a child process."""
    raise ValueError("a fault of ours")


def test_traceback_of_a_child(caplog: pytest.LogCaptureFixture) -> None:
    """Broken: the place of a fault in a child would be lost, or shown to users."""
    wake = Wakeup()
    crew = Crew(wake.fileno(), lambda: None)
    with caplog.at_level("DEBUG"):
        try:
            crew.start("child", fail, ())
            with pytest.raises(CrewError, match=r"^process child: ValueError: a fault of ours$"):
                crew.wait_for(int)
        finally:
            crew.stop()
    (record,) = caplog.records
    assert record.levelname == "DEBUG"
    assert 'raise ValueError("a fault of ours")' in record.getMessage()
