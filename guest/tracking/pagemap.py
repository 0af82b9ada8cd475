"""Read which pages of a mapping are marked as written, by the ioctl PAGEMAP_SCAN on a pagemap.

Linux 6.7 or newer. Source: Documentation/admin-guide/mm/pagemap.rst of Linux, and its
include/uapi/linux/fs.h.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .errors import TrackingError

_PAGEMAP_SCAN = 0xC0606610
"""_IOWR('f', 16, struct pm_scan_arg)."""
_ARGUMENTS = struct.Struct("=12Q")
"""struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages; categories:
inverted, mask, any-of mask, return mask.
"""
_WALK_END = 4
_REGION = np.dtype([("start", "=u8"), ("end", "=u8"), ("categories", "=u8")])
"""struct page_region, with addresses in bytes."""
_WP_MATCHING = 1
"""Flag: write-protect what matches, which removes its mark, in the same step."""
_CHECK_WPASYNC = 2
"""Flag: fail with EPERM where writes are not marked, instead of finding none."""
_IS_WRITTEN = 2
"""Category: the page was written since it was last write-protected."""
_REASONS = {
    errno.ESRCH: "the guest's process died",
    errno.EPERM: "the guest's writes are not marked any more",
    errno.ENOTTY: "this kernel cannot report what was written; Linux 6.7 and newer can",
}
_REGIONS = 4096
"""Runs of pages that one call returns at most."""

Runs = npt.NDArray[np.uint64]


class MarkReader:
    """A reader of the marks of one mapping, which belongs to any process.

    `pagemap` is a descriptor of that process's /proc/PID/pagemap.
    """

    def __init__(self, pagemap: int) -> None:
        self._pagemap = pagemap
        self._regions = np.zeros(_REGIONS, _REGION)

    def runs(self, start: int, end: int, *, rearm: bool) -> Iterator[Runs]:
        """Yield runs of marked pages between two addresses, in order, as arrays (n, 2) of u64.

        A run is two addresses, the second one behind its last page. `rearm` removes the marks that
        are returned, so that the next write to such a page marks it again. Raises TrackingError
        where the process is gone, or writes are not marked.
        """
        flags = _CHECK_WPASYNC | (_WP_MATCHING if rearm else 0)
        vector = self._regions.ctypes.data
        while start < end:
            categories = (0, _IS_WRITTEN, 0, _IS_WRITTEN)
            head = (_ARGUMENTS.size, flags, start, end, 0, vector, _REGIONS, 0)
            arguments = bytearray(_ARGUMENTS.pack(*head, *categories))
            try:
                count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, arguments)
            except OSError as error:
                raise TrackingError(_REASONS.get(error.errno or 0, str(error.strerror))) from error
            start = _ARGUMENTS.unpack(arguments)[_WALK_END]
            if count:
                found = self._regions[:count]
                yield np.stack([found["start"], found["end"]], axis=1)
