"""Make capabilities and parameters of a QEMU from the parameters of a migration."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Any

from ...guest.qemu.settings import Wanted
from ...protocol.errors import ParameterError
from ...sender.parameters import SendParameters
from ...transport import settings
from ...transport.settings import TrackerKind, ZeroPageDetection
from ...transport.uri import Exec, Fd, File, Tcp, Unix, Uri

NO_LIMIT = 0
"""Bandwidth in bytes per second that QEMU takes for no limit."""


def check_parameters(parameters: SendParameters, uri: Uri) -> None:
    """Raise ParameterError for what a QEMU cannot be asked, or cannot do over this URI."""
    if parameters.workers is not None:
        raise ParameterError("workers: QEMU reads its memory by itself; leave it out")
    if parameters.disks is not settings.DISKS.default:
        raise ParameterError("disks: QEMU's disks are not moved in the stream; leave it out")
    if parameters.tracker is not TrackerKind.AUTO:
        raise ParameterError("tracker: QEMU finds out what is written by itself; leave it out")
    if parameters.multifd_channels is not None and not isinstance(uri, (Tcp, Unix)):
        raise ParameterError(f"{uri}: multifd needs several connections: tcp: or unix:")
    if parameters.mapped_ram and not isinstance(uri, File):
        raise ParameterError(f"{uri}: mapped-ram writes a file: file:PATH")


def wanted(parameters: SendParameters, *, return_path: bool, paced_here: bool) -> Wanted:
    """Return what to set; `paced_here`: vmferry keeps to the limit of bandwidth, not QEMU."""
    capabilities = {
        "return-path": return_path,
        "xbzrle": parameters.xbzrle,
        "auto-converge": parameters.auto_converge is not None,
        "multifd": parameters.multifd_channels is not None,
        "mapped-ram": parameters.mapped_ram,
        "pause-before-switchover": parameters.pause_before_switchover,
        "events": True,
    }
    values: dict[str, Any] = {
        "max-bandwidth": NO_LIMIT if paced_here else parameters.max_bandwidth,
        "downtime-limit": round(parameters.downtime_limit * 1000),
    }
    if parameters.avail_switchover_bandwidth:
        values["avail-switchover-bandwidth"] = parameters.avail_switchover_bandwidth
    if parameters.xbzrle and parameters.xbzrle_cache_size is not None:
        values["xbzrle-cache-size"] = parameters.xbzrle_cache_size
    if parameters.direct_io:
        values["direct-io"] = True
    if parameters.zero_page_detection is not ZeroPageDetection.AUTO:
        values["zero-page-detection"] = parameters.zero_page_detection.value
    values |= _throttle(parameters) | _multifd(parameters)
    return Wanted(capabilities, values)


def _throttle(parameters: SendParameters) -> dict[str, Any]:
    throttle = parameters.auto_converge
    if throttle is None:
        return {}
    return {
        "cpu-throttle-initial": throttle.initial,
        "cpu-throttle-increment": throttle.increment,
        "max-cpu-throttle": throttle.maximum,
        "throttle-trigger-threshold": throttle.trigger_threshold,
    }


def _multifd(parameters: SendParameters) -> dict[str, Any]:
    if parameters.multifd_channels is None:
        return {}
    return {
        "multifd-channels": parameters.multifd_channels,
        "multifd-compression": parameters.multifd_compression.value,
        "multifd-zlib-level": parameters.multifd_zlib_level,
        "multifd-zstd-level": parameters.multifd_zstd_level,
    }


def goes_both_ways(uri: Uri) -> bool:
    """Return whether a destination can answer over this URI."""
    if isinstance(uri, Fd):
        # A descriptor that is not open is reported when it is to be used.
        with suppress(OSError):
            return stat.S_ISSOCK(os.fstat(uri.number).st_mode)
    return not isinstance(uri, (Exec, File))
