"""Open and create the files and folders of a guest at rest by descriptor, never through links.

A folder is known by its descriptor, and an entry in it by one name, so nothing outside can be
reached. All files of a guest are readable and writable by their owner only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable

from ..protocol.wire.kept import Payload, pieces

FILE_MODE = 0o600
FOLDER_MODE = 0o700

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LOCKS_HERE = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a regular file",
}
_libc = ctypes.CDLL(None, use_errno=True)


def open_path(path: str) -> int:
    """Open the folder that a user named; links may lead to it. Raises OSError."""
    return os.open(path, _OPEN_FOLDER)


def lock(folder: int) -> bool:
    """Lock the folder against other processes until it is closed; return False if another has it.

    Some file systems (NFS) cannot lock folders, so True is returned there. The folder is protected
    only by the facts that one process alone can create each folder in it, and that the last step of
    each guest is one rename.
    """
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
    return True


def kind_of(folder: int, name: str) -> str | None:
    """Return the kind of `name` in the folder, in words, or None if there is nothing."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    return _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


def is_file(folder: int, name: str) -> bool:
    """Return whether `name` in the folder is a regular file."""
    return kind_of(folder, name) == _KINDS[stat.S_IFREG]


def open_folder(folder: int, name: str) -> int:
    """Open the folder `name` in the folder. Raises OSError, also for a link."""
    kind = kind_of(folder, name)
    if kind not in (None, _KINDS[stat.S_IFDIR]):
        raise OSError(errno.ENOTDIR, f"is {kind}, not a folder", name)
    return os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=folder)


def open_file(folder: int, name: str, flags: int) -> int:
    """Open the regular file `name` in the folder. Raises OSError for anything else.

    The kind is checked before opening, because opening a device may have effects, and again
    afterwards, because another file may have taken the name meanwhile.
    """
    kind = kind_of(folder, name)
    if kind not in (None, _KINDS[stat.S_IFREG]):
        raise OSError(errno.EINVAL, f"is {kind}, not a regular file", name)
    fd = os.open(name, flags | _OPEN_FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", name)
    return fd


def read_file(folder: int, name: str, limit: int) -> bytes:
    """Return all bytes of the regular file `name`, at most `limit`. Raises OSError."""
    with open(open_file(folder, name, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(
                errno.EFBIG, f"has {size} bytes, more than the {limit} that may be read", name
            )
        try:
            # One extra byte would show that the file grew.
            data = file.read(size + 1)
        except MemoryError:
            raise OSError(errno.ENOMEM, f"has {size} bytes, more than memory", name) from None
    if len(data) != size:
        raise OSError(errno.EIO, "changed while it was read", name)
    return data


def make_folder(folder: int, name: str) -> int:
    """Create the folder `name` in the folder, for its owner only, and open it. Raises OSError."""
    os.mkdir(name, FOLDER_MODE, dir_fd=folder)
    try:
        fd = os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        _allow_owner(fd, FOLDER_MODE)
    except OSError:
        os.rmdir(name, dir_fd=folder)
        raise
    return fd


def make_file(folder: int, name: str) -> int:
    """Create the file `name` in the folder, for its owner only. Raises OSError if it exists."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, FILE_MODE, dir_fd=folder)
    try:
        _allow_owner(fd, FILE_MODE)
    except OSError:
        os.close(fd)
        os.unlink(name, dir_fd=folder)
        raise
    return fd


def _allow_owner(fd: int, mode: int) -> None:
    """Restore the permissions that the umask took from the owner; others can have got none."""
    if os.fstat(fd).st_mode & mode != mode:
        os.fchmod(fd, mode)


def write(fd: int, data: Payload) -> None:
    """Write all bytes to the file and close it. Raises OSError."""
    with open(fd, "wb", buffering=0) as file:
        for piece in pieces(data):
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]


def sync_files(folder: int, names: Iterable[str]) -> None:
    """Make files of the folder, and their names in it, durable. Raises OSError."""
    for name in names:
        fd = open_file(folder, name, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    os.fsync(folder)


def sync_at_once(folder: int) -> bool:
    """Make everything in the folder's file system durable; return False if that is unreliable.

    The caller must then sync file by file. Each `fsync` waits for the disk, and ten thousand of
    them take many seconds; one `syncfs` waits once, though also for what others have written there.
    It is reliable where Linux reports errors (from 5.8 on, those since `folder` was opened), and on
    a disk of this machine: it does not reach the disks of a file server. Raises OSError.
    """
    if _linux() < (5, 8) or os.major(os.fstat(folder).st_dev) == 0:
        return False
    if _libc.syncfs(folder):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return True


def _linux() -> tuple[int, ...]:
    """Return the first two numbers of the kernel's version."""
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
