"""Messages to a child whose end is closed."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe

import pytest
from vmferry.guest import synthetic_process
from vmferry.transport import process

SENDERS = [process.send_message, synthetic_process.send_message]


@pytest.mark.parametrize("send", SENDERS)
def test_failed_message_holds_no_buffer(send: Callable[[Connection, object], None]) -> None:
    """Broken: a child that died would crash its coordinator, at its next garbage collection."""
    ours, theirs = Pipe()
    theirs.close()
    with pytest.raises(BrokenPipeError) as failure:
        send(ours, "command")
    ours.close()
    for frame, _ in traceback.walk_tb(failure.tb):
        for value in frame.f_locals.values():
            assert not isinstance(value, memoryview) or isinstance(value.obj, bytes)


@pytest.mark.parametrize("send", SENDERS)
def test_message_arrives(send: Callable[[Connection, object], None]) -> None:
    """Broken: a command would not be what was meant."""
    ours, theirs = Pipe()
    send(ours, (1, "save", [b"x" * 100_000]))
    assert theirs.recv() == (1, "save", [b"x" * 100_000])
    ours.close()
    theirs.close()
