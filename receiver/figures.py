"""Hold the figures of an incoming migration, under the names of QEMU's `query-migrate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..protocol.states import MigrationStatus
from ..protocol.wire.marks import DEFAULT_PAGE_SIZE


@dataclass(frozen=True)
class Figures:
    """One snapshot: sizes in bytes, times in milliseconds, `mbps` in megabits per second.

    `multifd_bytes` is the part of `transferred` that arrived over the channels of multifd.
    """

    status: MigrationStatus
    total: int = 0
    transferred: int = 0
    multifd_bytes: int = 0
    duplicate: int = 0
    normal: int = 0
    xbzrle: int = 0
    page_size: int = DEFAULT_PAGE_SIZE
    mbps: float = 0.0
    total_time: int = 0

    def as_qmp(self) -> dict[str, Any]:
        """Return the figures as `query-migrate` lays them out."""
        return {
            "status": self.status.value,
            "total-time": self.total_time,
            "ram": {
                "total": self.total,
                "transferred": self.transferred,
                "duplicate": self.duplicate,
                "normal": self.normal,
                "xbzrle-pages": self.xbzrle,
                "normal-bytes": self.normal * self.page_size,
                "mbps": self.mbps,
                "multifd-bytes": self.multifd_bytes,
                "page-size": self.page_size,
            },
        }
