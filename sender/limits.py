"""Hold what a user may change while a migration runs: its limits, and its reaction to a stall."""

from __future__ import annotations

from ..guest.base import Guest
from ..transport.counters import Counters
from ..transport.settings import XBZRLE_CACHE_SIZE
from .convergence import Convergence
from .page_cache import cache_pages
from .parameters import SendParameters


class Limits:
    """The changeable parameters of one migration; each method may be called from any thread.

    Raises CacheSizeError if no XBZRLE cache can have the requested size.
    """

    def __init__(self, guest: Guest, parameters: SendParameters, convergence: Convergence) -> None:
        self._page_size = guest.machine.page_size
        self._ram = max(sum(block.length for block in guest.blocks), self._page_size)
        self._xbzrle = parameters.xbzrle
        self._convergence = convergence
        size = parameters.xbzrle_cache_size
        if size is None:
            size = min(XBZRLE_CACHE_SIZE.default, self._ram)
        pages = self._cache_pages(size)
        self.on_stall = parameters.on_stall
        """The reaction to a stall."""
        self.avail_switchover_bandwidth = parameters.avail_switchover_bandwidth
        """The bandwidth with which the downtime is forecast; 0: as measured."""
        self.shared = Counters.create(("max_bandwidth", "xbzrle_cache"))
        """The limits that the processes read; 0 means no limit, and no cache."""
        self.set_max_bandwidth(parameters.max_bandwidth)
        self.shared.set("xbzrle_cache", pages)

    def set_downtime_limit(self, seconds: float) -> None:
        """Change the longest time, in seconds, for which the guest may be stopped."""
        self._convergence.downtime_limit = seconds

    def set_max_bandwidth(self, limit: int) -> None:
        """Change the bandwidth limit, in bytes per second (0: no limit)."""
        self.shared.set("max_bandwidth", limit)

    def set_xbzrle_cache_size(self, size: int) -> None:
        """Change the size of the XBZRLE cache, in bytes, from the next round on.

        Raises CacheSizeError, also where XBZRLE is off.
        """
        self.shared.set("xbzrle_cache", self._cache_pages(size))

    def _cache_pages(self, size: int) -> int:
        """Return the number of pages in a cache of `size` bytes: none where XBZRLE is off."""
        pages = cache_pages(size, self._page_size, self._ram)
        return pages if self._xbzrle else 0
