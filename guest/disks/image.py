"""Describe the disks of a guest, and lock their images.

An image is locked as a whole, by the open file (OFD locks). QEMU locks single bytes of its images
in the same way, so neither opens an image that the other one uses. Source: QEMU's documentation,
docs/system/images ("Disk image file locking"), and what a QEMU 7.2 refuses.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

from ..errors import GuestError

MAX_DISK = 1 << 50
"""Largest size in bytes of a disk."""
_LOCK = struct.Struct("hhqqi4x")
"""struct flock: kind, whence, start, length (0: to the end, however far), process id (0)."""


@dataclass(frozen=True)
class Disk:
    """A disk of a guest: `size` bytes in the file `fd`, which is at `path`.

    The size is None while the disk arrives in an image that grows with it. `name` is what a stream
    calls the disk.
    """

    name: str
    size: int | None
    fd: int
    path: str
    read_only: bool = False


def lock(fd: int, path: str, *, read_only: bool = False) -> None:
    """Lock the image, until all duplicates of `fd` are closed; readers share an image.

    Raises GuestError if another process uses it.
    """
    kind = fcntl.F_RDLCK if read_only else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise GuestError(f"{path}: another process uses this image") from None
        raise GuestError(f"{path}: cannot be locked: {error.strerror}") from error
