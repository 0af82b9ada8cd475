"""Messages to a child whose end is closed."""

from __future__ import annotations

import traceback
from multiprocessing.connection import Pipe

import pytest
from vmferry.transport.process import send_message


def test_failed_message_holds_no_buffer() -> None:
    """Broken: a child that died would crash its coordinator, at its next garbage collection."""
    ours, theirs = Pipe()
    theirs.close()
    with pytest.raises(BrokenPipeError) as failure:
        send_message(ours, "command")
    ours.close()
    for frame, _ in traceback.walk_tb(failure.tb):
        for value in frame.f_locals.values():
            assert not isinstance(value, memoryview) or isinstance(value.obj, bytes)


def test_message_arrives() -> None:
    """Broken: a command would not be what was meant."""
    ours, theirs = Pipe()
    send_message(ours, (1, "save", [b"x" * 100_000]))
    assert theirs.recv() == (1, "save", [b"x" * 100_000])
    ours.close()
    theirs.close()
