"""Finish an incoming guest at rest: rename `guest.json.new` to `guest.json`.

Any process of the destination can do this, so that a guest is not lost with the process that
received it. A second process finds it done.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from . import directory_files as files
from .errors import GuestError

NAME = "guest.json"
"""Name of the file that marks a folder with a guest."""
NEW_NAME = "guest.json.new"
"""Name of the file that marks, without NAME, a guest that is complete but was not started."""


@dataclass(frozen=True)
class Finisher:
    """The last step for the sealed guest at the absolute `path`, callable from any process.

    `inode` and `modified` (nanoseconds) distinguish its guest.json.new from that of a later guest.
    """

    path: str
    inode: int
    modified: int

    @classmethod
    def of(cls, path: str, folder: int) -> Finisher:
        """Return what finishes the guest whose guest.json.new is in the folder now."""
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
        """Complete the guest in its open folder, unless it is complete. Raises GuestError."""
        try:
            if _identity(folder, NEW_NAME) == (self.inode, self.modified):
                # Another process may rename it at this very moment.
                with suppress(FileNotFoundError):
                    os.rename(NEW_NAME, NAME, src_dir_fd=folder, dst_dir_fd=folder)
            if _identity(folder, NAME) != (self.inode, self.modified):
                raise GuestError(f"{self.path}: the received guest is not there any more")
            os.fsync(folder)
        except OSError as error:
            raise GuestError(f"{self.path}: {error.strerror}") from error


def _identity(folder: int, name: str) -> tuple[int, int]:
    """Return the properties of a file that a rename keeps; zeros if the file is missing."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
