"""What an incoming guest at rest has made so far, so that all of it, and nothing else, can go."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from . import directory_files as files


def existing_parent(path: str) -> tuple[str, list[str]]:
    """Return `path`, or the nearest above it that exists, and the names that lack below it."""
    missing: list[str] = []
    while not os.path.lexists(path):
        path, name = os.path.split(path)
        missing.insert(0, name)
    return path, missing


class Making:
    """Folders and files in the order in which they were made, and open folders."""

    def __init__(self) -> None:
        self._folders: list[int] = []
        self._undo: list[Callable[[], None]] = []

    def hold(self, folder: int) -> int:
        """Take over an open folder, which is closed by `close`; return it."""
        self._folders.append(folder)
        return folder

    def path(self, path: str) -> int:
        """Make the folder at `path`, and those above it that lack; return it. Raises OSError."""
        parent, missing = existing_parent(path)
        folder = self.hold(files.open_path(parent))
        for name in missing:
            folder = self.folder(folder, name)
        return folder

    def folder(self, parent: int, name: str) -> int:
        """Make the folder `name` and return it; it stays ours. Raises OSError."""
        folder = files.make_folder(parent, name)
        self._undo.append(lambda: os.rmdir(name, dir_fd=parent))
        return self.hold(folder)

    def file(self, parent: int, name: str) -> int:
        """Make the file `name` and return it; it is the caller's to close. Raises OSError."""
        fd = files.make_file(parent, name)
        self._undo.append(lambda: os.unlink(name, dir_fd=parent))
        return fd

    def sync(self) -> None:
        """Make the names in all folders last. Raises OSError."""
        for folder in self._folders:
            os.fsync(folder)

    def undo(self) -> None:
        """Remove what was made. A folder that holds something of somebody else stays."""
        for step in reversed(self._undo):
            # What cannot be removed stays; the user needs the error that led here, not this one.
            with suppress(OSError):
                step()
        self.settle()

    def settle(self) -> None:
        """Let everything that was made stay, whatever happens from now on."""
        self._undo = []

    def close(self) -> None:
        """Close the folders."""
        while self._folders:
            os.close(self._folders.pop())
