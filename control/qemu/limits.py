"""Hold what a user may change while a QEMU migrates; `sender.limits` is that of other guests."""

from __future__ import annotations

from collections.abc import Callable

from ...guest.qemu.settings import Settings
from ...sender.parameters import SendParameters
from .rounds import Rounds


class QemuLimits:
    """The changeable parameters of one migration; each method may be called from any thread.

    Raises QemuError if QEMU refuses a value.
    """

    def __init__(self, parameters: SendParameters) -> None:
        self.on_stall = parameters.on_stall
        """The reaction to a stall."""
        self.max_bandwidth = parameters.max_bandwidth
        """Limit of the bandwidth in bytes per second; 0: no limit."""
        self.avail_switchover_bandwidth = parameters.avail_switchover_bandwidth
        """The bandwidth with which the downtime is forecast; 0: as measured."""
        self._xbzrle = parameters.xbzrle
        self._settings: Settings | None = None
        self._rounds: Rounds | None = None
        self._pace: Callable[[int], None] | None = None

    def begin(self, settings: Settings, rounds: Rounds, pace: Callable[[int], None]) -> None:
        """Pass on what changes from now on; `pace` takes the limit of the bandwidth."""
        self._settings, self._rounds, self._pace = settings, rounds, pace

    def set_downtime_limit(self, seconds: float) -> None:
        """Change the longest time, in seconds, for which the guest may be stopped."""
        if self._settings is not None and self._rounds is not None:
            self._settings.adjust("downtime-limit", round(seconds * 1000))
            self._rounds.downtime_limit = seconds

    def set_max_bandwidth(self, limit: int) -> None:
        """Change the bandwidth limit, in bytes per second (0: no limit)."""
        self.max_bandwidth = limit
        if self._pace is not None:
            self._pace(limit)

    def set_xbzrle_cache_size(self, size: int) -> None:
        """Change the size of the XBZRLE cache, in bytes, where XBZRLE is on."""
        if self._settings is not None and self._xbzrle:
            self._settings.adjust("xbzrle-cache-size", size)
