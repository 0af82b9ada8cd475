"""Hold the parameters of an outgoing migration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from ..protocol.errors import ParameterError
from ..transport.crew import check_workers
from .throttle import ThrottleParameters
from .tracking import TrackerKind


class OnStall(Enum):
    """The reaction to rounds that no longer shrink."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    SWITCHOVER = "switchover"


@dataclass(frozen=True, kw_only=True)
class SendParameters:
    """The parameters of an outgoing migration. Raises ParameterError for an unusable value."""

    max_bandwidth: int | None = None
    """Limit of the bandwidth in bytes per second; None: no limit."""
    downtime_limit: float = 0.3
    """Longest time in seconds for which the guest may be stopped."""
    workers: int | None = None
    """Number of processes that scan and encode. With 0, the transport process does that itself;
    with None, the machine decides.
    """
    return_path: bool = True
    """Ask the destination to answer, if the channel goes both ways."""
    xbzrle: bool = False
    """Send pages as differences to what the destination has."""
    xbzrle_cache_size: int | None = None
    """Size in bytes of the cache for `xbzrle`; None: 64 MiB, or all RAM if that is less."""
    compress: str = "none"
    """`none`, `zstd[:LEVEL]` or `adaptive`."""
    auto_converge: ThrottleParameters | None = None
    """How to throttle the guest while it dirties RAM faster than it is sent; None: never."""
    on_stall: OnStall = OnStall.CONTINUE
    """Reaction to rounds that no longer shrink: go on, cancel, or switch over."""
    tracker: TrackerKind = TrackerKind.AUTO
    """How dirty pages are found; AUTO: the best way that guest and kernel allow."""
    pause_before_switchover: bool = False
    """Wait for `Sender.proceed` once the guest is paused."""

    def __post_init__(self) -> None:
        """Check all values, because a wrong one would otherwise fail in another process."""
        for name in ("max_bandwidth", "xbzrle_cache_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ParameterError(f"{name}: {value!r} is not a positive number of bytes")
        limit = self.downtime_limit
        if not isinstance(limit, (int, float)) or not 0 <= limit < math.inf:
            raise ParameterError(f"downtime_limit: {limit!r} is not a number of seconds")
        check_workers(self.workers)
