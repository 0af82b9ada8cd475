"""Open the file of a channel once more, also past the page cache (direct I/O)."""

from __future__ import annotations

import errno
import os

from .channel import Channel, ChannelError

DIRECT_ALIGNMENT = 4096
"""Alignment in bytes, of memory, offset and length, that direct I/O takes on every usual disk."""


def reopen(channel: Channel, flags: int, *, direct_io: bool) -> Channel:
    """Return a channel with an offset of its own to the same file, opened with these flags.

    Raises ChannelError, also where the file system takes no direct I/O but that is wanted.
    """
    flags |= os.O_CLOEXEC | (os.O_DIRECT if direct_io else 0)
    try:
        return Channel(os.open(f"/proc/self/fd/{channel.fileno()}", flags), channel.name)
    except OSError as error:
        raise ChannelError(f"{channel.name}: {why_not(error)}") from error


def position(channel: Channel) -> int | None:
    """Return the offset in its file that a channel is at; None if it is not a file."""
    try:
        return os.lseek(channel.fileno(), 0, os.SEEK_CUR)
    except OSError:
        return None


def why_not(error: OSError) -> str:
    """Return the reason why a file could not be opened, read or written, perhaps by direct I/O."""
    if error.errno == errno.EINVAL:
        return "direct I/O (O_DIRECT) is not possible there: leave out --direct-io"
    return error.strerror or str(error)
