"""Record what an incoming guest at rest has created, so that exactly this can be removed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from . import directory_files as files


def existing_parent(path: str) -> tuple[str, list[str]]:
    """Return `path` or its nearest existing parent, and the names that are missing below it."""
    missing: list[str] = []
    while not os.path.lexists(path):
        path, name = os.path.split(path)
        missing.insert(0, name)
    return path, missing


class Making:
    """The folders and files created so far, in order, and the open folders."""

    def __init__(self) -> None:
        self._folders: list[int] = []
        self._undo: list[Callable[[], None]] = []

    def hold(self, folder: int) -> int:
        """Take over an open folder, which `close` will close; return it."""
        self._folders.append(folder)
        return folder

    def path(self, path: str) -> int:
        """Create the folder at `path` with its missing parents; return it. Raises OSError."""
        parent, missing = existing_parent(path)
        folder = self.hold(files.open_path(parent))
        for name in missing:
            folder = self.folder(folder, name)
        return folder

    def folder(self, parent: int, name: str) -> int:
        """Create the folder `name` and return it; `close` will close it. Raises OSError."""
        folder = files.make_folder(parent, name)
        self._undo.append(lambda: os.rmdir(name, dir_fd=parent))
        return self.hold(folder)

    def file(self, parent: int, name: str) -> int:
        """Create the file `name` and return it; the caller closes it. Raises OSError."""
        fd = files.make_file(parent, name)
        self._undo.append(lambda: os.unlink(name, dir_fd=parent))
        return fd

    def sync(self) -> None:
        """Make the names in all folders durable. Raises OSError."""
        for folder in self._folders:
            os.fsync(folder)

    def undo(self) -> None:
        """Remove what was created. A folder that holds anything else stays."""
        for step in reversed(self._undo):
            # The user needs the error that led here, not one about a file that could not be
            # removed.
            with suppress(OSError):
                step()
        self.settle()

    def settle(self) -> None:
        """Keep everything that was created, whatever happens from now on."""
        self._undo = []

    def close(self) -> None:
        """Close the folders."""
        while self._folders:
            os.close(self._folders.pop())
