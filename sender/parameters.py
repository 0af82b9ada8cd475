"""Hold the parameters of an outgoing migration."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.errors import ParameterError
from ..transport import settings
from ..transport.compression import CompressionError, parse_compression
from ..transport.settings import Disks, MultifdCompression, OnStall, TrackerKind, ZeroPageDetection
from .throttle import ThrottleParameters


@dataclass(frozen=True, kw_only=True)
class SendParameters:
    """The parameters of an outgoing migration. Raises ParameterError for an unusable value."""

    max_bandwidth: int = settings.MAX_BANDWIDTH.default
    """Limit of the bandwidth in bytes per second; 0: no limit."""
    avail_switchover_bandwidth: int = settings.AVAIL_SWITCHOVER_BANDWIDTH.default
    """Bandwidth in bytes per second with which the downtime is forecast, because the limit holds
    no more then; 0: as measured.
    """
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
    """Compression of the whole stream: `none`, `zstd[:LEVEL]` or `adaptive`."""
    auto_converge: ThrottleParameters | None = None
    """Throttle of the guest while it dirties RAM faster than it is sent; None: no throttle."""
    on_stall: OnStall = settings.ON_STALL.default
    """Reaction to rounds that no longer shrink: go on, cancel, or switch over."""
    tracker: TrackerKind = settings.TRACKER.default
    """Way to find dirty pages; AUTO: the best one that guest and kernel allow."""
    multifd_channels: int | None = None
    """Number of connections that pages travel over, besides the main one; None: no multifd."""
    multifd_compression: MultifdCompression = settings.MULTIFD_COMPRESSION.default
    """Compression of pages on the channels of multifd; the destination expects the same."""
    multifd_zlib_level: int = settings.MULTIFD_ZLIB_LEVEL.default
    """Compression level, with `MultifdCompression.ZLIB`."""
    multifd_zstd_level: int = settings.MULTIFD_ZSTD_LEVEL.default
    """Compression level, with `MultifdCompression.ZSTD`."""
    zero_page_detection: ZeroPageDetection = settings.ZERO_PAGE_DETECTION.default
    """Treatment of zero pages with multifd; AUTO: as the version of the machine asks for."""
    mapped_ram: bool = False
    """Write a mapped-ram file, in which each page has its place, from several workers at once."""
    direct_io: bool = settings.DIRECT_IO.default
    """Write pages past the page cache; needs `mapped_ram`."""
    disks: Disks = settings.DISKS.default
    """Part of the guest's disks that is sent, in the stream."""
    zero_blocks: bool = True
    """Send chunks of zeros on disks without data, as QEMU's capability of this name does."""
    dirty_bitmaps: bool = True
    """Send the dirty bitmaps that a guest keeps."""
    pause_before_switchover: bool = False
    """Wait for `Sender.proceed` once the guest is paused."""

    def __post_init__(self) -> None:
        """Check all values, because a wrong one would otherwise fail in another process."""
        settings.MAX_BANDWIDTH.check(self.max_bandwidth)
        settings.AVAIL_SWITCHOVER_BANDWIDTH.check(self.avail_switchover_bandwidth)
        settings.XBZRLE_CACHE_SIZE.check(self.xbzrle_cache_size)
        settings.WORKERS.check(self.workers)
        limit, most = self.downtime_limit, settings.DOWNTIME_LIMIT.most / 1000
        if not isinstance(limit, (int, float)) or not 0 <= limit <= most:
            message = f"downtime_limit: {limit!r} is not a number of seconds from 0 to {most:g}"
            raise ParameterError(message)
        try:
            parse_compression(self.compress)
        except CompressionError as error:
            raise ParameterError(f"compress: {error}") from None
        settings.MULTIFD_CHANNELS.check(self.multifd_channels)
        settings.MULTIFD_ZLIB_LEVEL.check(self.multifd_zlib_level)
        settings.MULTIFD_ZSTD_LEVEL.check(self.multifd_zstd_level)
        if self.multifd_channels is not None:
            self._check_with_channels(self.multifd_channels)
        if self.mapped_ram:
            self._check_with_places()
        elif self.direct_io:
            raise ParameterError("direct_io: only pages of a mapped_ram file are written so")

    def _check_with_channels(self, channels: int) -> None:
        """Raise ParameterError for what cannot be had together with multifd."""
        if self.xbzrle:
            raise ParameterError("xbzrle: multifd sends no differences; switch off one of both")
        if self.compress != settings.COMPRESS.default:
            raise ParameterError("compress: use multifd_compression with multifd_channels")
        if self.workers not in (None, channels):
            raise ParameterError(f"workers: there is one for each of {channels} multifd channels")

    def _check_with_places(self) -> None:
        """Raise ParameterError for what cannot be had together with mapped-ram."""
        if self.xbzrle:
            raise ParameterError("xbzrle: a mapped_ram file has no differences; leave one out")
        if self.compress != settings.COMPRESS.default:
            raise ParameterError("compress: pages of a mapped_ram file have a fixed size")
        if self.multifd_channels is not None:
            raise ParameterError(
                "multifd_channels: several workers write a mapped_ram file anyway; use workers"
            )
        if self.disks is not Disks.NONE:
            raise ParameterError("disks: a mapped_ram file holds none; send to another channel")
        if self.workers == 0:
            raise ParameterError("workers: a mapped_ram file is written by at least one")
