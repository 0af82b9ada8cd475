"""The last step of an incoming guest at rest: `guest.json.new` becomes `guest.json`.

Any process of the destination can take it, so that a guest is not lost with the process that
received it; who comes second finds it done.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from . import directory_files as files
from .errors import GuestError

NAME = "guest.json"
"""A folder with it holds a guest."""
NEW_NAME = "guest.json.new"
"""A folder with it, and without the other, holds a guest that is complete, but was not started."""


@dataclass(frozen=True)
class Finisher:
    """Completes the guest that was sealed at the absolute `path`, from whatever process.

    `inode` and `modified` (nanoseconds) tell its guest.json.new from that of any later guest.
    """

    path: str
    inode: int
    modified: int

    @classmethod
    def of(cls, path: str, folder: int) -> Finisher:
        """Return what finishes the guest whose guest.json.new stands in the folder now."""
        inode, modified = _identity(folder, NEW_NAME)
        return cls(path, inode, modified)

    def __call__(self) -> None:
        """Complete the guest, unless it is complete. Raises GuestError."""
        try:
            folder = files.open_path(self.path)
        except OSError as error:
            raise GuestError(f"{self.path}: {error.strerror}") from error
        try:
            self.finish(folder)
        finally:
            os.close(folder)

    def finish(self, folder: int) -> None:
        """Do the same in the folder, which is open already. Raises GuestError."""
        try:
            if _identity(folder, NEW_NAME) == (self.inode, self.modified):
                # Another process may be doing it at this very moment.
                with suppress(FileNotFoundError):
                    os.rename(NEW_NAME, NAME, src_dir_fd=folder, dst_dir_fd=folder)
            if _identity(folder, NAME) != (self.inode, self.modified):
                raise GuestError(f"{self.path}: the received guest is not there any more")
            os.fsync(folder)
        except OSError as error:
            raise GuestError(f"{self.path}: {error.strerror}") from error


def _identity(folder: int, name: str) -> tuple[int, int]:
    """Return what stays the same of a file when it is renamed; zeros where it is missing."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
