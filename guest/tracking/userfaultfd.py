"""Have the kernel mark the pages that this process writes: userfaultfd, asynchronous.

Registered pages are write-protected; the first write to one costs a fault of about a microsecond,
in which the kernel takes the protection away by itself. A page without it is one that was written.
Sources: userfaultfd(2), ioctl_userfaultfd(2), Documentation/admin-guide/mm/userfaultfd.rst of
Linux.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

from .errors import TrackingError

_SYSTEM_CALLS = {
    "x86_64": 323,
    "s390x": 355,
    **dict.fromkeys(("aarch64", "riscv64", "loongarch64"), 282),
}
"""Number of userfaultfd(2) by machine."""
_USER_MODE_ONLY = 1
"""Flag: allowed without privileges; asynchronous marks also see what the kernel writes."""
_API = 0xAA
_UFFDIO_API = 0xC018AA3F
"""_IOWR(0xAA, 0x3F, struct uffdio_api): api, features, ioctls; each u64."""
_UFFDIO_REGISTER = 0xC020AA00
"""_IOWR(0xAA, 0x00, struct uffdio_register): start, length, mode, ioctls; each u64."""
_WP_HUGETLBFS_SHMEM, _WP_UNPOPULATED, _WP_ASYNC = 1 << 12, 1 << 13, 1 << 15
"""Features: shared memory, pages that do not exist yet, and no process that answers faults."""
_REGISTER_MODE_WP = 2


def open_userfaultfd() -> int:
    """Return a new descriptor for asynchronous marks. Raises TrackingError with the reason."""
    number = _SYSTEM_CALLS.get(platform.machine())
    if number is None:
        raise TrackingError(f"userfaultfd is not known on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
    if fd < 0:
        reason = os.strerror(ctypes.get_errno())
        raise TrackingError(f"userfaultfd cannot be used here: {reason}")
    features = _WP_HUGETLBFS_SHMEM | _WP_UNPOPULATED | _WP_ASYNC
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("=3Q", _API, features, 0)))
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EINVAL:
            raise TrackingError(f"userfaultfd cannot be used here: {error.strerror}") from error
        raise TrackingError("this kernel cannot mark writes; Linux 6.7 and newer can") from error
    return fd


def register(fd: int, address: int, length: int) -> None:
    """Have writes marked in `length` bytes of this process's memory; both are whole system pages.

    The marks end when the last copy of the descriptor `fd` is closed. Raises TrackingError.
    """
    arguments = bytearray(struct.pack("=4Q", address, length, _REGISTER_MODE_WP, 0))
    try:
        fcntl.ioctl(fd, _UFFDIO_REGISTER, arguments)
    except OSError as error:
        raise TrackingError(f"memory of this kind cannot be marked: {error.strerror}") from error
