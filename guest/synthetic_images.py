"""Keep the images of a synthetic guest's disks for its controller: `disk0` is the first option."""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import directory_files as files
from .disks.image import Disk, lock
from .disks.incoming import IncomingImages
from .errors import GuestError


class SyntheticImages:
    """The images at these paths: opened as they are, or prepared for disks that arrive."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = {f"disk{number}": path for number, path in enumerate(paths)}
        self._opened: list[Disk] = []
        self._incoming = IncomingImages()
        self._folders: list[int] = []

    @property
    def disks(self) -> tuple[Disk, ...]:
        """Return the disks."""
        return tuple(self._opened) or self._incoming.disks

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of the images in bytes."""
        return tuple(os.fstat(disk.fd).st_size for disk in self.disks)

    def open(self) -> None:
        """Open and lock all images. Raises GuestError."""
        try:
            for name, path in self._paths.items():
                folder, file = self._place(path)
                fd = files.open_file(folder, file, os.O_RDWR)
                self._opened.append(Disk(name, os.fstat(fd).st_size, fd, path))
                lock(fd, path)
                if self._opened[-1].size == 0:
                    raise GuestError(f"{path}: an empty image")
        except GuestError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise GuestError(f"{path}: {error.strerror}") from error

    def _place(self, path: str) -> tuple[int, str]:
        """Return the open folder of an image, and its name there. Raises OSError."""
        folder, file = os.path.split(path)
        self._folders.append(files.open_path(folder or "."))
        return self._folders[-1], file

    def prepare(self, name: str) -> Disk:
        """Return the disk with this name, in its image. Raises GuestError."""
        path = self._paths.get(name)
        if path is None:
            raise GuestError(f"synthetic: the disk {name!r} arrives; add disk=IMAGE for each disk")
        try:
            return self._incoming.prepare(name, *self._place(path), path)
        except OSError as error:
            raise GuestError(f"{path}: {error.strerror}") from error

    def check_arrived(self) -> None:
        """Raise GuestError unless each image has got its disk."""
        arrived = [disk.name for disk in self._incoming.disks]
        missing = [path for name, path in self._paths.items() if name not in arrived]
        if missing:
            raise GuestError(f"{missing[0]}: no disk arrived for it; does the source send any?")

    def flush(self) -> None:
        """Make arrived images durable, and drop what is cached of them. Raises GuestError."""
        self._incoming.flush()

    def settle(self) -> None:
        """Give arrived images their names. Raises GuestError."""
        self._incoming.settle()

    def abandon(self) -> None:
        """Remove the images that were made here; those of a user stay, marked as incomplete."""
        self._incoming.abandon()

    def close(self) -> None:
        """Close the images; the guest's process may still have them open."""
        for disk in self._opened:
            os.close(disk.fd)
        self._incoming.close()
        for folder in self._folders:
            os.close(folder)
        self._opened, self._folders = [], []
