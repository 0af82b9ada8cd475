"""Counts what arrived over one channel of a captured multifd migration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ChannelCount:
    """Counts of a channel that is kept in `file`: packets, sync points, bytes, and pages that are
    `plain` or `zero`."""

    channel: int
    file: str
    compression: str = "none"
    packets: int = 0
    syncs: int = 0
    size: int = 0
    plain: int = 0
    zero: int = 0
