"""The receiving transport process looks at its commands, whatever arrives."""

from __future__ import annotations

import socket
from multiprocessing import Pipe

import numpy as np
import pytest
from vmferry.protocol.words import ping
from vmferry.receiver.exchange import Commands, Continue
from vmferry.receiver.slots import DATA_START, SLOT_SIZE
from vmferry.receiver.transport import MOST_EVENTS, TRANSPORT_COUNTERS, Transport, TransportSetup
from vmferry.receiver.worker import WORKER_COUNTERS
from vmferry.transport.channel import Channel
from vmferry.transport.counters import Counters
from vmferry.transport.shared import SharedFd

from tests.streams import RETURN_PATH, opening, to_bytes


def test_pings_do_not_delay_a_cancel() -> None:
    """Broken: a source that only sends pings would hold a cancelled receiver for seconds."""
    coordinator, connection = Pipe()
    answered = 0

    class Counted(Channel):
        """Channel whose first answer is followed by the coordinator's end."""

        def send(self, *_: memoryview, stop_fd: int | None = None) -> None:
            """Count an answer."""
            del stop_fd
            nonlocal answered
            answered += 1
            if answered == 1:
                coordinator.send(Continue())

    here, there = socket.socketpair()
    channel = Counted(here.detach(), "test")
    applied, counters = Counters.create(WORKER_COUNTERS), Counters.create(TRANSPORT_COUNTERS)
    progress = SharedFd.event()
    setup = TransportSetup((), (applied,), counters, progress, None)
    transport = Transport(connection, setup, channel, Commands(connection))
    slot = np.zeros(SLOT_SIZE, np.uint8)
    stream = to_bytes([*opening()[:1], RETURN_PATH]) + ping(7) * (10 * MOST_EVENTS)
    slot[DATA_START : DATA_START + len(stream)] = np.frombuffer(stream, np.uint8)
    with pytest.raises(EOFError):
        transport._take(slot, len(stream))
    assert answered <= MOST_EVENTS
    channel.close()
    for shared in (applied, counters, progress, there, coordinator, connection):
        shared.close()
