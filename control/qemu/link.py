"""The process that passes what a QEMU sends over the link of a relay; docs/relay.md explains that.

It is a near relay with one connection, which it is given. The far relay passes the stream to the
destination, and what breaks in between is made good again or held up as with any pair of relays.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ...protocol.formats.link import LinkError
from ...relay.near import Near
from ...relay.parameters import RelayParameters
from ...relay.sockets import Socket
from ...transport.channel import ChannelError
from ...transport.crew import Failed
from ...transport.process import send_message
from .carrying import Ends, Passed

PERIOD = 0.1
"""Seconds between two looks at the figures of the link."""


@dataclass(frozen=True)
class LinkSetup:
    """The setup of a near relay in a process of its own."""

    ends: Ends
    parameters: RelayParameters


@dataclass(frozen=True)
class Note:
    """Report: a line about the link for the user."""

    line: str


def run_link(connection: Connection, setup: LinkSetup) -> None:
    """Pass one migration over the link; the process's entry.

    It answers "ready" once there is a connection to the far relay.
    """
    # The command may have died, and the migration goes on.
    with suppress(OSError):
        try:
            asyncio.run(_pass(connection, setup))
            send_message(connection, Passed(answered=True))
        except (LinkError, ChannelError, OSError) as error:
            send_message(connection, Failed(str(error)))
        except asyncio.CancelledError:
            return


async def _pass(connection: Connection, setup: LinkSetup) -> None:
    def report(line: str) -> None:
        with suppress(OSError):
            send_message(connection, Note(line))

    near = Near(setup.parameters, None, report)
    near.give(Socket(socket.socket(fileno=os.dup(setup.ends.stream.fileno()))))
    running = asyncio.ensure_future(near.run())
    looking = asyncio.ensure_future(_look(connection, near, setup.ends))
    asyncio.get_running_loop().add_reader(setup.ends.stop.fileno(), running.cancel)
    try:
        await running
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _look(connection: Connection, near: Near, ends: Ends) -> None:
    """Share the figures of the link, and report once that it is up."""
    ready = False
    while True:
        session = near.session
        if session is not None:
            if session.was_up and not ready:
                ready = True
                send_message(connection, "ready")
            figures = session.figures
            ends.counters.set("raw_bytes", figures.read)
            ends.counters.set("transferred", figures.sent)
            ends.counters.set("compressed_bytes", figures.sent)
            ends.counters.set("level", figures.level)
        await asyncio.sleep(PERIOD if ready else PERIOD / 10)
