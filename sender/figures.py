"""Hold the figures of an outgoing migration, under the names of QEMU's `query-migrate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..protocol.states import MigrationStatus
from ..protocol.wire.marks import DEFAULT_PAGE_SIZE
from .stall import Stall, command_line_option

_STATS = (
    "total",
    "transferred",
    "remaining",
    "duplicate",
    "skipped",
    "normal",
    "normal-bytes",
    "dirty-pages-rate",
    "dirty-sync-count",
    "mbps",
    "page-size",
    "pages-per-second",
    "precopy-bytes",
    "downtime-bytes",
    "postcopy-bytes",
    "postcopy-requests",
    "multifd-bytes",
    "dirty-sync-missed-zero-copy",
)
"""Members of QEMU's `MigrationStats`, which `query-migrate` has for RAM, and for disks."""


@dataclass(frozen=True)
class XbzrleFigures:
    """QEMU's `XBZRLECacheStats`: sizes in bytes, the rates over the last round."""

    cache_size: int
    bytes: int
    pages: int
    cache_miss: int
    cache_miss_rate: float
    encoding_rate: float
    overflow: int

    def as_qmp(self) -> dict[str, Any]:
        """Return the fields as `query-migrate` lays them out."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class CompressionFigures:
    """The effect of compression: bytes before (`raw_size`) and after (`compressed_size`).

    `levels` has the present level of each process that compresses; 0 means uncompressed.
    """

    method: str
    levels: tuple[int, ...]
    raw_size: int
    compressed_size: int

    @property
    def rate(self) -> float:
        """Return the compression ratio: bytes of content per byte of frame."""
        return self.raw_size / self.compressed_size if self.compressed_size else 1.0

    def as_qmp(self) -> dict[str, Any]:
        """Return the fields for QMP, with the size and rate names of `CompressionStats`."""
        return {
            "method": self.method,
            "levels": list(self.levels),
            "raw-size": self.raw_size,
            "compressed-size": self.compressed_size,
            "compression-rate": self.rate,
        }


@dataclass(frozen=True)
class ThrottleFigures:
    """The percentage of the time for which the guest is stopped: now, and at most so far."""

    percentage: int
    highest: int


@dataclass(frozen=True)
class Forecast:
    """Earlier forecasts, kept to compare them with the actual times. Times are in milliseconds.

    `total_time` was forecast at the end of round `after_round`; None means that the migration would
    not end. `downtime` was forecast when the guest was paused.
    """

    after_round: int | None = None
    total_time: int | None = None
    downtime: int | None = None

    def as_qmp(self) -> dict[str, Any]:
        """Return the fields for QMP; this is vmferry's own, `query-migrate` has no counterpart."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class DiskFigures:
    """The disks, in bytes: their size, what was sent of them, and what is still to be sent.

    Zeros count like other bytes; `on_wire` is what records of disks have taken in the stream.
    """

    total: int = 0
    transferred: int = 0
    remaining: int = 0
    on_wire: int = 0

    def as_qmp(self) -> dict[str, Any]:
        """Return the figures as `query-migrate` lays them out: all of MigrationStats, most 0."""
        known = ("total", "transferred", "remaining")
        return dict.fromkeys(_STATS, 0) | {name: getattr(self, name) for name in known}


class XbzrleRounds:
    """The XBZRLE rates of the last round, computed from counters that only grow."""

    def __init__(self) -> None:
        self.cache_miss_rate = 0.0
        """Part of the dirty pages that had no line in the cache."""
        self.encoding_rate = 0.0
        """Bytes of pages per byte of encoding."""
        self._before = dict.fromkeys(("cache_miss", "xbzrle_pages", "xbzrle_bytes"), 0)

    def round_done(self, counter: Callable[[str], int], found: int, page_size: int) -> None:
        """Record a round with `found` dirty pages; `counter` reads a counter of the workers."""
        now = {name: counter(name) for name in self._before}
        miss, pages, size = (now[name] - self._before[name] for name in self._before)
        self._before = now
        self.cache_miss_rate = miss / found if found else 0.0
        self.encoding_rate = pages * page_size / size if size else 0.0


@dataclass(frozen=True)
class Figures:
    """One snapshot of a migration.

    Sizes in bytes, times in milliseconds, `mbps` in megabits per second.

    Names have the meanings of `MigrationInfo` and `MigrationStats` in QEMU's QMP reference.
    `multifd_bytes` is the part of `transferred` that went over the channels of multifd, and
    `precopy_bytes` is the part of `transferred` that was sent before the guest was paused.
    `remaining` is exact in the first round; in later rounds it is a forecast. `remaining_time` is a
    forecast for the whole migration, or in the first round for that round alone; None means that it
    is unknown or that the migration would not end. `stall` is set while rounds do not shrink.
    `total`, `remaining` and `transferred` are of RAM and disks together, except in QMP; `disk` has
    those of the disks, and is None if no disks are sent.
    `tracker` names the way in which the dirty pages of a running guest are found.
    """

    status: MigrationStatus
    total: int = 0
    transferred: int = 0
    multifd_bytes: int = 0
    precopy_bytes: int = 0
    pages_per_second: int = 0
    remaining: int = 0
    duplicate: int = 0
    normal: int = 0
    page_size: int = DEFAULT_PAGE_SIZE
    dirty_pages_rate: int = 0
    dirty_sync_count: int = 0
    mbps: float = 0.0
    setup_time: int = 0
    expected_downtime: int = 0
    downtime: int = 0
    total_time: int = 0
    remaining_time: int | None = None
    forecast: Forecast = field(default_factory=Forecast)
    stall: Stall | None = None
    throttle: ThrottleFigures | None = None
    error: str | None = None
    xbzrle: XbzrleFigures | None = None
    compression: CompressionFigures | None = None
    tracker: str | None = None
    disk: DiskFigures | None = None

    @property
    def normal_bytes(self) -> int:
        """Return the bytes that were sent as whole pages."""
        return self.normal * self.page_size

    def as_qmp(self) -> dict[str, Any]:
        """Return the figures as `query-migrate` lays them out."""
        disk = self.disk or DiskFigures()
        answer: dict[str, Any] = {
            "status": self.status.value,
            "total-time": self.total_time,
            "setup-time": self.setup_time,
            "remaining-time": self.remaining_time,
            "forecast": self.forecast.as_qmp(),
            "ram": {
                "total": self.total - disk.total,
                "transferred": max(0, self.transferred - disk.on_wire),
                "remaining": self.remaining - disk.remaining,
                "duplicate": self.duplicate,
                "skipped": 0,
                "normal": self.normal,
                "normal-bytes": self.normal_bytes,
                "dirty-pages-rate": self.dirty_pages_rate,
                "dirty-sync-count": self.dirty_sync_count,
                "mbps": self.mbps,
                "page-size": self.page_size,
                "pages-per-second": self.pages_per_second,
                "precopy-bytes": self.precopy_bytes,
                "downtime-bytes": self.transferred - self.precopy_bytes,
                "postcopy-bytes": 0,
                "postcopy-requests": 0,
                "multifd-bytes": self.multifd_bytes,
                "dirty-sync-missed-zero-copy": 0,
            },
        }
        if self.status is MigrationStatus.COMPLETED:
            answer["downtime"] = self.downtime
        else:
            answer["expected-downtime"] = self.expected_downtime
        if self.disk is not None:
            answer["disk"] = disk.as_qmp()
        if self.stall is not None:
            answer["stall"] = self.stall.explain(command_line_option).as_json()
        if self.tracker is not None:
            answer["tracker"] = self.tracker
        if self.throttle is not None:
            answer["cpu-throttle-percentage"] = self.throttle.percentage
            answer["cpu-throttle-highest"] = self.throttle.highest
        if self.xbzrle is not None:
            answer["xbzrle-cache"] = self.xbzrle.as_qmp()
        if self.compression is not None:
            answer["compression"] = self.compression.as_qmp()
        if self.error is not None:
            answer["error-desc"] = self.error
        return answer
