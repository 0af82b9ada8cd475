"""Notice a destination whose host is gone, or that takes nothing more of a paused guest."""

from __future__ import annotations

import time

from ..guest.errors import MigrationError
from ..transport.channel import Channel
from ..transport.silence import GONE_AFTER
from .processes import Processes

STILL_TIMEOUT = 60.0
"""Seconds that the destination may read nothing while the guest is paused."""


def check_host(channel: Channel) -> None:
    """Raise MigrationError if the destination's host is gone.

    The kernel would notice only after 15 minutes.
    """
    if channel.silence > GONE_AFTER:
        raise MigrationError(f"the destination's host has been silent for {GONE_AFTER:.0f} s")


class DestinationProgress:
    """The bytes that the destination took last, and since when it has taken no more."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._sent, self._since = 0, 0.0

    def note(self) -> None:
        """Start to count the time without progress from now on."""
        self._sent, self._since = self._processes.sent("transferred"), time.monotonic()

    def check(self) -> None:
        """Raise MigrationError if the destination has stopped reading.

        It cannot have started the guest as long as the end of the stream was not sent; a caller
        checks only until then.
        """
        if self._processes.sent("transferred") != self._sent:
            self.note()
        elif time.monotonic() > self._since + STILL_TIMEOUT:
            raise MigrationError(f"the destination took nothing for {STILL_TIMEOUT:.0f} s")
