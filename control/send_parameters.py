"""Make the parameters of an outgoing migration from those that QMP has set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..guest.base import Guest
from ..sender.limits import Limits
from ..sender.parameters import SendParameters
from ..sender.throttle import ThrottleParameters
from ..transport import settings
from ..transport.settings import Disks, MultifdCompression, OnStall, TrackerKind, ZeroPageDetection
from .capabilities import Capabilities
from .extensions import AUTO, COMPRESS, ON_STALL, TRACKER, WORKERS
from .parameters import Parameters

if TYPE_CHECKING:
    # The library for QMP is slow to import, and other guests do without.
    from .qemu.limits import QemuLimits


def send_parameters(
    guest: Guest, value: Parameters, on: Capabilities, disks: Disks
) -> SendParameters:
    """Return the parameters of a migration of `guest` and of its `disks` that starts now."""
    throttle = ThrottleParameters(
        value["cpu-throttle-initial"],
        value["cpu-throttle-increment"],
        value["max-cpu-throttle"],
        value["throttle-trigger-threshold"],
    )
    return SendParameters(
        max_bandwidth=value["max-bandwidth"],
        avail_switchover_bandwidth=value["avail-switchover-bandwidth"],
        downtime_limit=value["downtime-limit"] / 1000,
        workers=None if value[WORKERS] == AUTO else value[WORKERS],
        return_path=on["return-path"],
        xbzrle=on["xbzrle"],
        xbzrle_cache_size=_cache_size(guest, value) or None,
        compress=value[COMPRESS],
        auto_converge=throttle if on["auto-converge"] else None,
        on_stall=OnStall(value[ON_STALL]),
        tracker=TrackerKind(value[TRACKER]),
        multifd_channels=value[settings.MULTIFD_CHANNELS.name] if on["multifd"] else None,
        multifd_compression=MultifdCompression(value[settings.MULTIFD_COMPRESSION.name]),
        multifd_zlib_level=value[settings.MULTIFD_ZLIB_LEVEL.name],
        multifd_zstd_level=value[settings.MULTIFD_ZSTD_LEVEL.name],
        zero_page_detection=ZeroPageDetection(value[settings.ZERO_PAGE_DETECTION.name]),
        mapped_ram=on["mapped-ram"],
        direct_io=on["mapped-ram"] and value[settings.DIRECT_IO.name],
        disks=disks,
        zero_blocks=on["zero-blocks"],
        dirty_bitmaps=on["dirty-bitmaps"],
        pause_before_switchover=on["pause-before-switchover"],
    )


def change_limits(
    limits: Limits | QemuLimits, guest: Guest, value: Parameters, *, paused: bool
) -> None:
    """Apply the parameters to a running migration. Raises CacheSizeError.

    `paused`: the guest is paused for the last round, which has no bandwidth limit.
    """
    if not paused:
        limits.set_max_bandwidth(value["max-bandwidth"])
    limits.avail_switchover_bandwidth = value["avail-switchover-bandwidth"]
    limits.set_downtime_limit(value["downtime-limit"] / 1000)
    limits.on_stall = OnStall(value[ON_STALL])
    limits.set_xbzrle_cache_size(_cache_size(guest, value))


def _cache_size(guest: Guest, value: Parameters) -> int:
    """Return the size of the XBZRLE cache in bytes: at most that of the guest's RAM."""
    size: int = min(value["xbzrle-cache-size"], guest.ram_size)
    return size
