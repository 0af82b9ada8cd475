"""Keep the disks of a guest at rest: raw images in the folder `disks`.

An image that a user puts there before the guest arrives takes the disk of its name. It says the
size, which no stream does: a stream has whole blocks of 1 MiB.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import unquote

from ..protocol.wire.block import BLOCK_SIZE
from . import directory_files as files
from .directory_making import Making
from .directory_open import DISKS, open_disks
from .directory_rules import DiskFile, check_disks
from .disks.image import Disk
from .disks.incoming import SUFFIX, IncomingImages
from .errors import GuestError
from .file_names import quoted


class DirectoryDisks:
    """The disks of the guest in the folder at `path`: those that it has, or those that arrive."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: tuple[Disk, ...] = ()
        self._entries: tuple[DiskFile, ...] = ()
        self._incoming = IncomingImages()
        self._folder: int | None = None

    @property
    def disks(self) -> tuple[Disk, ...]:
        """Return the disks."""
        return self._opened or self._incoming.disks

    @property
    def made(self) -> tuple[str, ...]:
        """Return the names of the images that an incoming guest has created."""
        return self._incoming.made

    def open(self, folder: int, entries: Sequence[DiskFile]) -> None:
        """Open and lock the disks of the guest in this folder. Raises FormatError, GuestError."""
        self._opened = open_disks(folder, entries, self._path)
        self._entries = tuple(entries)

    def prepare(self, folder: int, making: Making, name: str) -> Disk:
        """Return the incoming disk. Raises GuestError, FormatError, or OSError."""
        if self._folder is None:
            self._folder = self._open_folder(folder, making)
        name = name or self._only_name()
        if name in self._incoming:
            raise GuestError(f"{self._path}/{DISKS}: two disks would be in the image {name!r}")
        file = quoted(name)
        disk = self._incoming.prepare(name, self._folder, file, f"{self._path}/{DISKS}/{file}")
        check_disks([DiskFile(name, disk.size or BLOCK_SIZE, file, disk.read_only)])
        return disk

    @staticmethod
    def _open_folder(folder: int, making: Making) -> int:
        """Return the folder of the images, which is made unless a user has. Raises OSError."""
        if files.kind_of(folder, DISKS) is None:
            return making.folder(folder, DISKS)
        return making.hold(files.open_folder(folder, DISKS))

    def _only_name(self) -> str:
        """Return the name of a disk without one: that of the only image that a user has made."""
        assert self._folder is not None
        names = os.listdir(self._folder)
        if len(names) != 1:
            raise GuestError(
                f"{self._path}/{DISKS}: a disk without a name arrives; make one image here, of its"
                " size, and with the name that it is to have, or give the disk an id at the source"
            )
        return unquote(names[0].removesuffix(SUFFIX))

    def flush(self) -> None:
        """Make the images durable, and drop what is cached of them. Raises GuestError."""
        self._incoming.flush()

    def settle(self) -> None:
        """Give the images their final names. Raises GuestError."""
        self._incoming.settle()

    def entries(self) -> tuple[DiskFile, ...]:
        """Return the disks for guest.json."""
        return self._entries + tuple(
            DiskFile(disk.name, disk.size or 0, file, disk.read_only)
            for disk, file in zip(self._incoming.disks, self._incoming.files, strict=True)
        )

    def abandon(self) -> None:
        """Remove the images that were made here; those of a user stay, marked as incomplete."""
        self._incoming.abandon()

    def close(self) -> None:
        """Close the images, so that other processes may use them."""
        for disk in self._opened:
            os.close(disk.fd)
        self._opened, self._entries, self._folder = (), (), None
        self._incoming.close()
