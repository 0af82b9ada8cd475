"""The figures of an outgoing migration, under the names of QEMU's `query-migrate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..protocol.states import MigrationStatus
from .stall import Stall


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
        """As `query-migrate` lays them out."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class CompressionFigures:
    """Sizes in bytes of what the frames hold, and of the frames.

    `levels`: the present one of each process that compresses; 0: none.
    """

    method: str
    levels: tuple[int, ...]
    raw_size: int
    compressed_size: int

    @property
    def rate(self) -> float:
        """How many bytes one byte of a frame stands for."""
        return self.raw_size / self.compressed_size if self.compressed_size else 1.0

    def as_qmp(self) -> dict[str, Any]:
        """`compressed-size` and `compression-rate` mean what they do in `CompressionStats`."""
        return {
            "method": self.method,
            "levels": list(self.levels),
            "raw-size": self.raw_size,
            "compressed-size": self.compressed_size,
            "compression-rate": self.rate,
        }


@dataclass(frozen=True)
class ThrottleFigures:
    """Percentages of the guest's time that it is kept from running: now, and at most so far."""

    percentage: int
    highest: int


@dataclass(frozen=True)
class Forecast:
    """What was forecast, to be compared with what then happened. Times in milliseconds.

    `total_time`: by the end of round `after_round`, by which the guest was known; None: it would
    not end. `downtime`: when the guest was paused.
    """

    after_round: int | None = None
    total_time: int | None = None
    downtime: int | None = None

    def as_qmp(self) -> dict[str, Any]:
        """Our own; `query-migrate` has nothing like it."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}


class XbzrleRounds:
    """The rates of the last round, from counters that only grow."""

    def __init__(self) -> None:
        self.cache_miss_rate = 0.0
        """Of the pages found dirty, how many had no line in the cache."""
        self.encoding_rate = 0.0
        """How many bytes of pages one byte of encoding stands for."""
        self._before = dict.fromkeys(("cache_miss", "xbzrle_pages", "xbzrle_bytes"), 0)

    def round_done(self, counter: Callable[[str], int], found: int, page_size: int) -> None:
        """Take in a round that found so many dirty pages; `counter`: the workers'."""
        now = {name: counter(name) for name in self._before}
        miss, pages, size = (now[name] - self._before[name] for name in self._before)
        self._before = now
        self.cache_miss_rate = miss / found if found else 0.0
        self.encoding_rate = pages * page_size / size if size else 0.0


@dataclass(frozen=True)
class Figures:
    """One snapshot. Sizes in bytes, times in milliseconds, `mbps` in megabits a second.

    The meanings are those that QEMU's QMP reference gives for `MigrationInfo` and `MigrationStats`.
    `precopy_bytes`: of those transferred, what was sent before the guest was paused.
    `remaining` is exact in the first round; later the pages that a round will find are forecast.
    `remaining_time`: forecast, of the whole migration, or in the first round of that alone; None:
    not known, or it would not end. `stall`: while rounds do not shrink.
    """

    status: MigrationStatus
    total: int = 0
    transferred: int = 0
    precopy_bytes: int = 0
    pages_per_second: int = 0
    remaining: int = 0
    duplicate: int = 0
    normal: int = 0
    page_size: int = 4096
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

    @property
    def normal_bytes(self) -> int:
        """Bytes that went as whole pages."""
        return self.normal * self.page_size

    def as_qmp(self) -> dict[str, Any]:
        """The figures as `query-migrate` lays them out."""
        answer: dict[str, Any] = {
            "status": self.status.value,
            "total-time": self.total_time,
            "setup-time": self.setup_time,
            "remaining-time": self.remaining_time,
            "forecast": self.forecast.as_qmp(),
            "ram": {
                "total": self.total,
                "transferred": self.transferred,
                "remaining": self.remaining,
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
                "multifd-bytes": 0,
                "dirty-sync-missed-zero-copy": 0,
            },
        }
        if self.status is MigrationStatus.COMPLETED:
            answer["downtime"] = self.downtime
        else:
            answer["expected-downtime"] = self.expected_downtime
        if self.stall is not None:
            answer["stall"] = {"reason": self.stall.reason, "advice": list(self.stall.advice)}
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
