"""Compute the figures of a migration from its parts, and keep forecasts to compare with them."""

from __future__ import annotations

from ..guest.base import Guest
from ..protocol.states import MigrationStatus
from ..transport.meter import Meter
from .convergence import Convergence, Round
from .figures import (
    CompressionFigures,
    DiskFigures,
    Figures,
    Forecast,
    ThrottleFigures,
    XbzrleFigures,
    XbzrleRounds,
)
from .limits import Limits
from .parameters import SendParameters
from .processes import Processes
from .ram import FOUND
from .sources import Sources
from .stall import LIMITED, Situation, Stall, explain
from .throttle import AutoConverge


class Report:
    """The maker of a migration's figures; it reads the other parts and changes only its records.

    `method` names the compression of slots; None means no compression.
    """

    def __init__(
        self,
        guest: Guest,
        parameters: SendParameters,
        *,
        processes: Processes,
        sources: Sources,
        convergence: Convergence,
        limits: Limits,
        method: str | None,
    ) -> None:
        self._parameters = parameters
        self._processes = processes
        self._sources = sources
        self._convergence = convergence
        self._limits = limits
        self._method = method
        self._page_size = guest.machine.page_size
        self._xbzrle_rounds = XbzrleRounds()
        self._forecast = Forecast()
        self._before = dict.fromkeys(("scanned", "found", "pages", "transferred", "busy_ns"), 0)
        self.throttle: AutoConverge | None = None
        self.stall: Stall | None = None
        self._round_bandwidth = 0.0
        """Bytes per second while sending, in the last whole round that sent anything."""
        self._unlimited = 0.0
        """Bytes per second while sending, in the last window in which there was no limit."""
        self._was_limited = True
        self._precopy_bytes: int | None = None
        self.round = 0
        self.meter = Meter()

    def window(self) -> None:
        """Close a measuring window of the bandwidth."""
        now = self._now()
        self.meter.window(now["transferred"], now["busy_ns"], now["pages"])
        limited = bool(self._limits.shared["max_bandwidth"])
        if not limited and not self._was_limited:
            self._unlimited = self.meter.bandwidth
        self._was_limited = limited

    @property
    def switchover_bandwidth(self) -> float:
        """Return the bytes per second that the link is expected to bear while the guest is stopped.

        That is what the user says, else what was measured: where the limit holds the link up now,
        before it did.
        """
        if self._limits.avail_switchover_bandwidth:
            return float(self._limits.avail_switchover_bandwidth)
        return self._at_last(self.meter.bandwidth)

    def _at_last(self, bandwidth: float) -> float:
        """Return what the link bears without the limit, given the bandwidth measured now."""
        holds_up = bandwidth > self._limits.shared["max_bandwidth"] * LIMITED
        if self._limits.shared["max_bandwidth"] and holds_up:
            return max(bandwidth, self._unlimited)
        return bandwidth

    def round_begins(self) -> None:
        """Record the start of a round, before the processes are ordered to begin it."""
        self.meter.begin("round")
        self._before = self._now()

    def round_ends(self) -> Round:
        """Record the end of a round and return its results."""
        self.meter.end("round")
        self.window()
        now = self._now()
        scanned, found, pages, sent, busy_ns = (now[name] - self._before[name] for name in now)
        self._before["scanned"] += scanned
        done = Round(
            self.round,
            found,
            sent,
            self.meter.milliseconds("round") / 1000,
            busy_ns / 1e9,
            self._sources.pending(),
        )
        if done.busy > 0:
            self._round_bandwidth = done.sent_bytes / done.busy
        self._xbzrle_rounds.round_done(self._processes.scanned, pages, self._page_size)
        self.round += 1
        return done

    def _now(self) -> dict[str, int]:
        return {
            "scanned": self._sources.scanned,
            "found": self._sources.found,
            "pages": sum(map(self._processes.scanned, FOUND)),
            "transferred": self._processes.sent("transferred"),
            "busy_ns": self._processes.sent("busy_ns"),
        }

    def note_forecast(self) -> None:
        """Record the forecast of the total time after round 2, or after round 1 if it is the last.

        By then two rounds of different length have shown how the guest dirties its RAM.
        """
        if not self._convergence.knows_guest or self.round > 3:
            return
        left = self._convergence.remaining_seconds(self.meter.bandwidth, self.switchover_bandwidth)
        total = None if left is None else self.meter.milliseconds("total") + round(left * 1000)
        self._forecast = Forecast(self.round - 1, total)

    def note_downtime(self) -> None:
        """Record what was sent so far and the expected downtime, before the guest is paused."""
        self._precopy_bytes = self._processes.sent("transferred")
        expected = self._convergence.expected_downtime(self.switchover_bandwidth)
        self._forecast = Forecast(
            self._forecast.after_round, self._forecast.total_time, round(expected * 1000)
        )

    def explain_stall(self) -> Stall:
        """Return why rounds do not shrink, and what would help."""
        parameters, convergence = self._parameters, self._convergence
        # That of the last window depends on where in a piece the round happened to end.
        bandwidth, known = self._round_bandwidth, self._limits.avail_switchover_bandwidth
        return explain(
            Situation(
                bandwidth=bandwidth,
                left=convergence.expected_sent,
                downtime=convergence.expected_downtime(known or self._at_last(bandwidth)),
                downtime_limit=convergence.downtime_limit,
                switchover_is_known=bool(known or self._unlimited),
                max_bandwidth=self._processes.limits["max_bandwidth"],
                delta=None if parameters.xbzrle else self._sampled("sampled_delta"),
                zstd=None if self._method else self._sampled("sampled_zstd"),
                cache_miss_rate=self._xbzrle_rounds.cache_miss_rate,
                cache_size=self._processes.limits["xbzrle_cache"] * self._page_size,
                can_slow=self.throttle is None,
            )
        )

    def _sampled(self, counter: str) -> float | None:
        """Return the part of the pages that an encoding would leave; None without samples."""
        pages = self._processes.scanned("sampled")
        return self._processes.scanned(counter) / pages if pages else None

    def figures(self, status: MigrationStatus) -> Figures:
        """Return the present figures."""
        expected = self._convergence.expected_downtime(self.switchover_bandwidth)
        transferred = self._processes.sent("transferred")
        return Figures(
            status=status,
            total=self._sources.total,
            transferred=transferred,
            multifd_bytes=self._multifd_bytes(),
            precopy_bytes=transferred if self._precopy_bytes is None else self._precopy_bytes,
            pages_per_second=round(self.meter.pages_per_second),
            remaining=self._remaining(status),
            duplicate=self._processes.scanned("duplicate"),
            normal=self._processes.scanned("normal"),
            page_size=self._page_size,
            dirty_pages_rate=int(self._convergence.dirty_rate / self._page_size),
            dirty_sync_count=self.round,
            mbps=self.meter.mbps,
            setup_time=self.meter.milliseconds("setup"),
            expected_downtime=round(expected * 1000),
            downtime=self.meter.milliseconds("downtime"),
            total_time=self.meter.milliseconds("total"),
            remaining_time=self._remaining_time(status),
            forecast=self._forecast,
            stall=self.stall,
            throttle=self._throttle_figures(),
            xbzrle=self._xbzrle_figures(),
            compression=self._compression_figures(),
            tracker=self._processes.tracker,
            disk=self._disk_figures(status),
        )

    def _multifd_bytes(self) -> int:
        """Return the bytes that workers sent over channels of multifd."""
        if self._parameters.multifd_channels is None:
            return 0
        return self._processes.scanned("transferred")

    def _remaining(self, status: MigrationStatus) -> int:
        """Return the bytes of this round still to send: exact in round 0, later a forecast."""
        if status is MigrationStatus.COMPLETED:
            return 0
        return round(self._convergence.expected_dirty * (1 - self._scanned_part()))

    def _disk_figures(self, status: MigrationStatus) -> DiskFigures | None:
        """Return the figures of the disks; what is written again counts as remaining again."""
        disks = self._sources.disks
        if disks is None:
            return None
        left = max(0, disks.total - disks.scanned) + (disks.pending() or 0)
        if status is MigrationStatus.COMPLETED:
            left = 0
        remaining = min(left, self._remaining(status))
        return DiskFigures(disks.total, disks.found, remaining, disks.on_wire)

    def _scanned_part(self) -> float:
        """Return the part of all sources that this round has gone over, from 0 to 1."""
        scanned = self._sources.scanned - self._before["scanned"]
        return min(1.0, scanned / max(self._sources.total, 1))

    def _remaining_time(self, status: MigrationStatus) -> int | None:
        """Return the remaining milliseconds, or None if unknown.

        In round 0, before anything is known about the guest, this is the rest of that round alone.
        """
        spent = self.meter.milliseconds("round")
        if status is not MigrationStatus.ACTIVE:
            return 0 if status is MigrationStatus.COMPLETED else None
        if not self._convergence.knows_guest:
            part = self._scanned_part()
            return round(spent / part - spent) if part else None
        left = self._convergence.remaining_seconds(self.meter.bandwidth, self.switchover_bandwidth)
        return None if left is None else max(0, round(left * 1000) - spent)

    def _throttle_figures(self) -> ThrottleFigures | None:
        if self.throttle is None:
            return None
        return ThrottleFigures(self.throttle.percentage, self.throttle.highest)

    def _compression_figures(self) -> CompressionFigures | None:
        if self._method is None:
            return None
        return CompressionFigures(
            method=self._method,
            levels=self._processes.levels(),
            raw_size=self._processes.scanned("raw_bytes"),
            compressed_size=self._processes.scanned("compressed_bytes"),
        )

    def _xbzrle_figures(self) -> XbzrleFigures | None:
        if not self._parameters.xbzrle:
            return None
        scanned = self._processes.scanned
        return XbzrleFigures(
            cache_size=self._processes.limits["xbzrle_cache"] * self._page_size,
            bytes=scanned("xbzrle_bytes"),
            pages=scanned("xbzrle_pages"),
            cache_miss=scanned("cache_miss"),
            cache_miss_rate=self._xbzrle_rounds.cache_miss_rate,
            encoding_rate=self._xbzrle_rounds.encoding_rate,
            overflow=scanned("overflow"),
        )
