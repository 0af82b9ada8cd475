"""Follow the rounds of a QEMU's migration by what `query-migrate` says, and forecast from them.

A moment after a round has begun, QEMU says how many bytes it found to be sent. That counts the
pages that the guest wrote in the round before, as kernel's marks do for vmferry's own guests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ...protocol.states import MigrationStatus
from ...sender.convergence import MOMENT, Convergence, Round
from ...sender.figures import CompressionFigures, Figures, Forecast, ThrottleFigures, XbzrleFigures
from ...sender.parameters import SendParameters
from ...sender.stall import Situation, Stall, StallDetector, explain
from ...transport.settings import MAX_CPU_THROTTLE

_ROUNDS = "dirty-sync-count"


class Rounds:
    """The rounds of one migration; `look` takes each answer of `query-migrate`."""

    def __init__(
        self,
        parameters: SendParameters,
        max_bandwidth: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parameters = parameters
        self._max_bandwidth = max_bandwidth
        self._clock = clock
        self._convergence: Convergence | None = None
        self._detector = StallDetector()
        self._told: dict[str, Any] = {}
        self._number = 0
        self._began = clock()
        self._sent_before = 0
        self._bandwidth = 0.0
        self._throttled = 0
        self._forecast = Forecast()
        self.downtime_limit = parameters.downtime_limit
        """Longest time in seconds for which the guest may be stopped; it may change."""
        self.stall: Stall | None = None
        """Why rounds do not shrink, and what would help; None while they do."""
        self.zstd: float | None = None
        """Part of the stream that zstd would leave, where that is known and not on."""
        self.compression: CompressionFigures | None = None
        """Figures of vmferry's compression so far; None without it."""

    @property
    def number(self) -> int:
        """Return how many rounds have begun."""
        return self._number

    def look(self, told: dict[str, Any]) -> None:
        """Take in what `query-migrate` says now."""
        self._told = told
        ram = told.get("ram")
        self._throttled = max(self._throttled, told.get("cpu-throttle-percentage", 0))
        if ram is None:
            return
        if self._convergence is None:
            self._convergence = Convergence(ram["total"], self.downtime_limit)
        self._convergence.downtime_limit = self.downtime_limit
        if ram[_ROUNDS] > self._number:
            if self._number and told["status"] == MigrationStatus.ACTIVE:
                self._round_ends(ram)
            self._number = ram[_ROUNDS]
            self._began, self._sent_before = self._clock(), ram["transferred"]

    def _round_ends(self, ram: dict[str, Any]) -> None:
        assert self._convergence is not None
        seconds = max(self._clock() - self._began, MOMENT)
        sent = ram["transferred"] - self._sent_before
        done = Round(self._number - 1, sent, sent, seconds, seconds, ram["remaining"])
        self._bandwidth = sent / seconds
        self._convergence.round_done(done)
        self._detector.round_done(done)
        if self._parameters.auto_converge and not self._at_maximum:
            self._detector.begin_again()
        # QEMU stops the guest soon if the rest fits.
        fits = self._convergence.should_switch_over(self._bandwidth)
        self.stall = self._explain() if self._detector.stalled and not fits else None

    @property
    def _at_maximum(self) -> bool:
        throttle = self._parameters.auto_converge
        most = MAX_CPU_THROTTLE.default if throttle is None else throttle.maximum
        return bool(self._told.get("cpu-throttle-percentage", 0) >= most)

    def _explain(self) -> Stall:
        convergence, cache = self._convergence, self._told.get("xbzrle-cache", {})
        assert convergence is not None
        known = self._parameters.avail_switchover_bandwidth
        return explain(
            Situation(
                bandwidth=self._bandwidth,
                left=convergence.expected_sent,
                downtime=convergence.expected_downtime(known or self._bandwidth),
                downtime_limit=self.downtime_limit,
                max_bandwidth=self._max_bandwidth(),
                switchover_is_known=bool(known),
                delta=None,
                zstd=self.zstd,
                cache_miss_rate=cache.get("cache-miss-rate", 0.0),
                cache_size=cache.get("cache-size", 0),
                can_slow=self._parameters.auto_converge is None,
            )
        )

    def _remaining_time(self) -> int | None:
        convergence = self._convergence
        if convergence is None or not convergence.knows_guest or not self._bandwidth:
            return None
        left = convergence.remaining_seconds(self._bandwidth, self._bandwidth)
        spent = self._clock() - self._began
        return None if left is None else round(max(0.0, left - spent) * 1000)

    def figures(self, status: MigrationStatus) -> Figures:
        """Return the figures of the migration, as QEMU reports them."""
        told, ram = self._told, self._told.get("ram", {})
        return Figures(
            status=status,
            total=ram.get("total", 0),
            transferred=self._transferred(ram.get("transferred", 0)),
            multifd_bytes=ram.get("multifd-bytes", 0),
            precopy_bytes=ram.get("precopy-bytes", 0),
            pages_per_second=ram.get("pages-per-second", 0),
            remaining=ram.get("remaining", 0),
            duplicate=ram.get("duplicate", 0),
            normal=ram.get("normal", 0),
            page_size=ram.get("page-size", 4096),
            dirty_pages_rate=ram.get("dirty-pages-rate", 0),
            dirty_sync_count=ram.get(_ROUNDS, 0),
            mbps=ram.get("mbps", 0.0),
            setup_time=told.get("setup-time", 0),
            expected_downtime=told.get("expected-downtime", 0),
            downtime=told.get("downtime", 0),
            total_time=told.get("total-time", 0),
            remaining_time=self._remaining_time(),
            forecast=self._forecast,
            stall=self.stall,
            throttle=self._throttle(told.get("cpu-throttle-percentage", 0)),
            xbzrle=_xbzrle(told.get("xbzrle-cache")),
            compression=self.compression,
        )

    def _transferred(self, by_qemu: int) -> int:
        """Return the bytes on the channel, which are fewer than QEMU's if they are compressed."""
        return by_qemu if self.compression is None else self.compression.compressed_size

    def _throttle(self, now: int) -> ThrottleFigures | None:
        if self._parameters.auto_converge is None:
            return None
        return ThrottleFigures(now, self._throttled)


def _xbzrle(told: dict[str, Any] | None) -> XbzrleFigures | None:
    if told is None:
        return None
    return XbzrleFigures(
        cache_size=told["cache-size"],
        bytes=told["bytes"],
        pages=told["pages"],
        cache_miss=told["cache-miss"],
        cache_miss_rate=told["cache-miss-rate"],
        encoding_rate=told["encoding-rate"],
        overflow=told["overflow"],
    )
