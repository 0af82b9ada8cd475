"""Keep the images of an incoming guest, whose names say that they are incomplete until they are.

An image is `NAME.incomplete` from before its first byte arrives until the guest is sealed. So no
one takes half a disk for a whole one, whatever happens to the processes or the machine: the file
that a user knows is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from .. import directory_files as files
from ..errors import GuestError
from .image import Disk, lock

SUFFIX = ".incomplete"
"""End of the name of an image that is not whole."""
MAX_DISKS = 256
"""Largest number of disks of a guest."""


@dataclass
class _Image:
    """An image in the open folder `folder`: its final name is `file`, its present one `name`."""

    disk: Disk
    folder: int
    file: str
    name: str
    made: bool


class IncomingImages:
    """The images that the disks of one guest arrive in; raises GuestError for all that fails."""

    def __init__(self) -> None:
        self._images: dict[str, _Image] = {}

    def __contains__(self, disk: str) -> bool:
        return disk in self._images

    @property
    def disks(self) -> tuple[Disk, ...]:
        """Return the disks, in the order of their arrival, with the sizes that they have now."""
        return tuple(image.disk for image in self._images.values())

    @property
    def files(self) -> tuple[str, ...]:
        """Return the final names of the images, in the order of `disks`."""
        return tuple(image.file for image in self._images.values())

    @property
    def made(self) -> tuple[str, ...]:
        """Return the present names of the images that were not there before."""
        return tuple(image.name for image in self._images.values() if image.made)

    def prepare(self, disk: str, folder: int, file: str, path: str) -> Disk:
        """Return the disk, in the image `file` of the open folder, at `path`.

        An image that a user has made has to have the disk's size. Otherwise one is made that grows.
        The folder has to stay open until `close`.
        """
        if len(self._images) == MAX_DISKS:
            raise GuestError(f"{path}: more than {MAX_DISKS} disks")
        if any(image.file == file for image in self._images.values()):
            raise GuestError(f"{path}: two disks would be in the same image")
        with _naming(path):
            image = self._open(disk, folder, file, path)
        self._images[disk] = image
        return image.disk

    def _open(self, disk: str, folder: int, file: str, path: str) -> _Image:
        name = file + SUFFIX
        if files.kind_of(folder, name) is not None:
            raise GuestError(
                f"{path}{SUFFIX}: half an image, which a migration left that failed; remove it, or"
                f" rename it to {file} to receive into it again"
            )
        if files.kind_of(folder, file) is None:
            fd = files.make_file(folder, name)
            lock(fd, path)
            return _Image(Disk(disk, None, fd, path), folder, file, name, made=True)
        fd = files.open_file(folder, file, os.O_RDWR)
        try:
            lock(fd, path)
            size = os.fstat(fd).st_size
            os.rename(file, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except BaseException:
            os.close(fd)
            raise
        return _Image(Disk(disk, size, fd, path), folder, file, name, made=False)

    def flush(self) -> None:
        """Make the contents durable, and drop what the system has cached of them.

        The sizes are those that the images have now.
        """
        for image in self._images.values():
            disk = image.disk
            with _naming(disk.path):
                os.fsync(disk.fd)
                os.posix_fadvise(disk.fd, 0, 0, os.POSIX_FADV_DONTNEED)
                size = self._present_size(image)
            if disk.size is not None and disk.size != size:
                message = f"{disk.path}: has {size} bytes now, and had {disk.size}"
                raise GuestError(f"{message}: another process has changed it")
            image.disk = Disk(disk.name, size, disk.fd, disk.path)

    @staticmethod
    def _present_size(image: _Image) -> int:
        """Return the size of the file that has the image's name now, if it is the open one."""
        named = os.stat(image.name, dir_fd=image.folder, follow_symlinks=False)
        opened = os.fstat(image.disk.fd)
        if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
            raise GuestError(f"{image.disk.path}{SUFFIX}: another file has taken its place")
        return named.st_size

    def settle(self) -> None:
        """Give all images their final names: they are whole, and `flush` has made them durable."""
        for image in self._images.values():
            with _naming(image.disk.path):
                if files.kind_of(image.folder, image.file) is not None:
                    raise GuestError(f"{image.disk.path}: another file has taken this name")
                self._rename(image, image.file)
                os.fsync(image.folder)

    def abandon(self) -> None:
        """Remove the images that were made here; the others stay, marked as incomplete."""
        for image in self._images.values():
            # The user needs the error that led here.
            with suppress(OSError):
                if image.made:
                    os.unlink(image.name, dir_fd=image.folder)
                elif image.name == image.file:
                    self._rename(image, image.file + SUFFIX)
        self.close()

    @staticmethod
    def _rename(image: _Image, name: str) -> None:
        os.rename(image.name, name, src_dir_fd=image.folder, dst_dir_fd=image.folder)
        image.name = name

    def close(self) -> None:
        """Close the images, so that other processes may use them."""
        for image in self._images.values():
            os.close(image.disk.fd)
        self._images = {}


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Raise GuestError that begins with the path, for an OSError."""
    try:
        yield
    except OSError as error:
        raise GuestError(f"{path}: {error.strerror}") from error
