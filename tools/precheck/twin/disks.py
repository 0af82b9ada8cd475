"""Gives a twin empty disks of the same sizes, in place of images that another QEMU may lock."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from ....protocol.formats import qcow2
from .values import compose

USUAL_SIZE = 1 << 30
"""Bytes of a disk whose size is not known; only the size of a flash memory is seen in a stream."""

_DRIVE = ("if", "index", "bus", "unit", "media", "id", "readonly", "serial", "werror", "rerror")
"""The properties of a drive that its device has."""
_NODE = ("node-name", "read-only")
"""The properties of a block node that its users see."""
_NAMES = ("file", "filename", "file.filename", "file.file.filename")
"""The properties that name an image."""
_EMPTY = {"driver": "null-co", "read-zeroes": "on"}


def drive(properties: Mapping[str, str]) -> str:
    """Return the value of -drive for a twin; one without an image stays empty."""
    kept = {name: properties[name] for name in _DRIVE if name in properties}
    if not any(name.partition(".")[0] in ("file", "driver") for name in properties):
        return compose(kept)
    return compose({**kept, **_EMPTY, "size": str(_size(properties))})


class Nodes:
    """The block nodes of a command line, each of which may stand on another by its name."""

    def __init__(self) -> None:
        self._images: dict[str, str] = {}

    def backend(self, properties: Mapping[str, str]) -> str:
        """Return the value of -blockdev for a twin: every node is one by itself."""
        below = self._images.get(properties.get("file", ""))
        found = dict(properties) if below is None else {**properties, "file": below}
        image = next(_images(found), None)
        if image is not None and "node-name" in properties:
            self._images[properties["node-name"]] = image
        kept = {name: properties[name] for name in _NODE if name in properties}
        return compose({**kept, **_EMPTY, "size": str(_size(found))})


def _size(properties: Mapping[str, str]) -> int:
    """Return the bytes of the disk in an image, if the file shows that."""
    for name in _images(properties):
        try:
            with open(name, "rb") as file:
                head = file.read(qcow2.MAX_HEADER)
            if head.startswith(qcow2.MAGIC):
                return int(qcow2.Header.parse(head.ljust(qcow2.MAX_HEADER, b"\0")).size)
            size = os.path.getsize(name)
        except OSError:
            continue
        if size:
            return size
    return USUAL_SIZE


def _images(properties: Mapping[str, str]) -> Iterator[str]:
    for name in _NAMES:
        if name in properties:
            yield properties[name].removeprefix("file:")
