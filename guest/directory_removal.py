"""Remove an incoming guest at rest that was not whole when its coordinator died.

Any process of the destination can do this if it knows that no answer was sent: until then the
source has not given the guest up.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from . import directory_files as files
from .directory_finish import NAME, NEW_NAME
from .directory_making import existing_parent
from .directory_open import BITMAPS, DEVICES, DISKS, RAM

_PART = re.compile(r"\d{3,}-")
"""Beginning of the names of files that hold a part of a guest, as `file_names` makes them."""
_LOCK_WITHIN = 2.0
"""Seconds that the system may take to release the lock of a process that died."""
_LOOK_AGAIN = 0.02


@dataclass(frozen=True)
class Remover:
    """The removal of an unfinished guest at the absolute `path`, callable from any process.

    `made` is the number of folders at the end of the path that were created for the guest, and are
    removed with it. `identity` is the device and inode of the folder, once it exists. Until it is
    known, a complete guest in the folder may be another one. `images` has the names of the images
    that were created for it; those of a user stay, marked as incomplete.
    """

    path: str
    made: int
    identity: tuple[int, int] | None = None
    images: tuple[str, ...] = ()

    @classmethod
    def before(cls, path: str) -> Remover:
        """Return what removes a guest that is to be created at the path, which is free now."""
        return cls(path, len(existing_parent(path)[1]))

    def of(self, folder: int, images: tuple[str, ...]) -> Remover:
        """Return a copy that knows the identity of the open folder, and the images made in it."""
        return replace(self, identity=_identity(folder), images=images)

    def __call__(self) -> None:
        """Remove the guest, unless it is complete or another process uses the folder.

        A folder that holds anything else stays.
        """
        with suppress(OSError):
            folder = files.open_path(self.path)
            try:
                if not self._is_ours(folder):
                    return
                for name in (RAM, DEVICES):
                    with suppress(OSError):
                        _remove_parts(folder, name)
                with suppress(OSError):
                    _remove_images(folder, self.images)
                if self.identity is not None:
                    with suppress(OSError):
                        os.unlink(NEW_NAME, dir_fd=folder)
                self._remove_folders()
            finally:
                os.close(folder)
            return
        # The process died before it had created the whole path.
        self._remove_folders()

    def _is_ours(self, folder: int) -> bool:
        if self.identity not in (None, _identity(folder)) or not _lock(folder):
            return False
        if files.kind_of(folder, NAME) is not None:
            return False
        return self.identity is not None or files.kind_of(folder, NEW_NAME) is None

    def _remove_folders(self) -> None:
        path = self.path
        for _ in range(self.made):
            # A folder that is not empty stays, and so do its parents.
            with suppress(OSError):
                os.rmdir(path)
            path = os.path.dirname(path)


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino


def _lock(folder: int) -> bool:
    until = time.monotonic() + _LOCK_WITHIN
    while not files.lock(folder):
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_AGAIN)
    return True


def _remove_parts(folder: int, name: str) -> None:
    """Remove the folder `name` and the parts of a guest in it. Raises OSError."""
    parts = files.open_folder(folder, name)
    try:
        for part in os.listdir(parts):
            if (_PART.match(part) or part == BITMAPS) and files.is_file(parts, part):
                os.unlink(part, dir_fd=parts)
    finally:
        os.close(parts)
    os.rmdir(name, dir_fd=folder)


def _remove_images(folder: int, images: tuple[str, ...]) -> None:
    """Remove these images, and their folder unless it holds anything else. Raises OSError."""
    disks = files.open_folder(folder, DISKS)
    try:
        for image in images:
            if files.is_file(disks, image):
                os.unlink(image, dir_fd=disks)
    finally:
        os.close(disks)
    os.rmdir(DISKS, dir_fd=folder)
