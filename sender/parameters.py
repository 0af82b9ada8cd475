"""Hold the parameters of an outgoing migration."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.errors import ParameterError
from ..transport import settings
from ..transport.settings import OnStall, TrackerKind
from .throttle import ThrottleParameters


@dataclass(frozen=True, kw_only=True)
class SendParameters:
    """The parameters of an outgoing migration. Raises ParameterError for an unusable value."""

    max_bandwidth: int = settings.MAX_BANDWIDTH.default
    """Limit of the bandwidth in bytes per second; 0: no limit."""
    downtime_limit: float = settings.DOWNTIME_LIMIT.default / 1000
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
    compress: str = settings.COMPRESS.default
    """`none`, `zstd[:LEVEL]` or `adaptive`."""
    auto_converge: ThrottleParameters | None = None
    """How to throttle the guest while it dirties RAM faster than it is sent; None: never."""
    on_stall: OnStall = settings.ON_STALL.default
    """Reaction to rounds that no longer shrink: go on, cancel, or switch over."""
    tracker: TrackerKind = settings.TRACKER.default
    """How dirty pages are found; AUTO: the best way that guest and kernel allow."""
    pause_before_switchover: bool = False
    """Wait for `Sender.proceed` once the guest is paused."""

    def __post_init__(self) -> None:
        """Check all values, because a wrong one would otherwise fail in another process."""
        settings.MAX_BANDWIDTH.check(self.max_bandwidth)
        settings.XBZRLE_CACHE_SIZE.check(self.xbzrle_cache_size)
        settings.WORKERS.check(self.workers)
        limit, most = self.downtime_limit, settings.DOWNTIME_LIMIT.most / 1000
        if not isinstance(limit, (int, float)) or not 0 <= limit <= most:
            message = f"downtime_limit: {limit!r} is not a number of seconds from 0 to {most:g}"
            raise ParameterError(message)
