"""Opens whatever a user names as a stream, and reports the containers that it was found in.

A name is a path, `-` for standard input, or `DISK.qcow2#SNAPSHOT`. The first bytes show the type of
the content: a libvirt save image, compressed data, a qcow2 image, or (anything else) the stream
itself. Containers may be nested.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ...guest.sizes import format_size
from ...protocol import events
from ...protocol.errors import StreamError, UnsupportedError
from ...protocol.formats import qcow2
from ...protocol.reader import StreamReader
from ...protocol.reading.configuration import MAPPED_RAM
from ...protocol.wire.marks import MAGIC
from ..console.text import open_file
from .compressed import format_of
from .save_image import HEAD, SaveImage, magic_of, read_save_image
from .snapshots import Image, MachineState, Snapshot, names_of
from .source import Source, give_back, left_in, sought_or_source
from .spool import spooled

if TYPE_CHECKING:
    from .channels import Channels

MAX_LAYERS = 4
"""The most compressions that a file may be nested in."""
_STREAM = MAGIC.to_bytes(4, "big")
_BEGINNING = 4096
"""The number of bytes within which a stream shows whether it is a mapped-ram file."""


class ChooseSnapshotError(StreamError):
    """Raised for a qcow2 image that is given without the name of a snapshot in it."""

    def __init__(self, snapshots: tuple[Snapshot, ...]) -> None:
        names = names_of(snapshots)
        message = f"a qcow2 image; name a snapshot in it as FILE#SNAPSHOT: it has {names}"
        super().__init__(message, offset=0)
        self.snapshots = snapshots


@dataclass(frozen=True)
class Opened:
    """An open stream, positioned at its first byte. `layers` names its containers, outermost first.

    Without compression `stream` is the file itself, which is seekable. A mapped-ram file is always
    seekable; if necessary `stream` is a temporary copy of it. `channels` are those of a multifd
    migration, if the user gave any.
    """

    stream: BinaryIO
    layers: tuple[str, ...] = ()
    image: SaveImage | None = None
    start: int = 0
    """The offset of the stream's first byte in a seekable file."""
    channels: Channels | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys layers and libvirt (None, or the keys of
        SaveImage.as_json).
        """
        image = None if self.image is None else self.image.as_json()
        return {"layers": list(self.layers), "libvirt": image}


@contextmanager
def open_stream(name: str, offset: int = 0, length: int | None = None) -> Iterator[Opened]:
    """Open the named stream, which begins at `offset` in its file and is at most `length` bytes
    long.

    Raises StreamError if a container of the stream is damaged; OSError.
    """
    path, snapshot = split(name)
    with open_file(path, "rb") as file:
        yield unpack(cast(BinaryIO, file), snapshot, offset, length)


def split(name: str) -> tuple[str, str | None]:
    """Return the path and the snapshot of a name. A file may have a # in its own name."""
    path, sign, snapshot = name.rpartition("#")
    if sign and not os.path.exists(name) and os.path.exists(path):
        return path, snapshot
    return name, None


def source_file(name: str) -> int | str:
    """Return the descriptor or the path of the file that a name means."""
    return 0 if name == "-" else split(name)[0]


def unpack(
    source: BinaryIO, snapshot: str | None, offset: int = 0, length: int | None = None
) -> Opened:
    """Return the stream in `source` from `offset` on; `snapshot` names the one to read in a qcow2
    image.

    `length` is the number of bytes in which the stream ends, or None if it is unknown.
    """
    source = sought_or_source(source)
    _pass(source, offset)
    if length is not None:
        # Only --length needs this module.
        from .window import window  # noqa: PLC0415

        source = window(source, length)
    layers: list[str] = []
    image: SaveImage | None = None
    at = 0
    while True:
        beginning = _peek(source, _BEGINNING)
        head = beginning[:HEAD]
        if head.startswith(qcow2.MAGIC) or snapshot is not None:
            state = _state(source, head, snapshot, bool(layers or offset or length))
            return Opened(state, (*layers, "qcow2 snapshot"))
        if image is None and magic_of(head) is not None:
            image, at = _save_image(source)
            layers.append("libvirt save image")
            continue
        found = format_of(head)
        if found is None:
            if not beginning.startswith(_STREAM):
                raise StreamError(_no_stream(source, beginning, layers, offset), offset=at)
            if not source.seekable() and _is_mapped(beginning):
                source = spooled(source)
            start = source.tell() if source.seekable() else 0
            return Opened(source, tuple(layers), image, start)
        if len(layers) == MAX_LAYERS:
            raise StreamError(f"more than {MAX_LAYERS} layers of compression", offset=at)
        source = cast(BinaryIO, Source(found.open(source, at)))
        layers.append(found.name)
        at = 0


def _is_mapped(beginning: bytes) -> bool:
    """Return whether the stream is a mapped-ram file, which has to be read at random offsets."""
    try:
        found = StreamReader().feed(beginning)
    except StreamError as error:
        found = list(error.found)
    listed = [event for event in found if isinstance(event, events.Configuration)]
    return any(MAPPED_RAM in (event.capabilities or ()) for event in listed)


def _save_image(source: BinaryIO) -> tuple[SaveImage, int]:
    """Read a save image up to its stream; return the image and the offset of the stream in it."""
    image, at, rest = read_save_image(source)
    give_back(source, rest)
    return image, at


def _pass(source: BinaryIO, count: int) -> None:
    """Skip `count` bytes. Raises StreamError if there are fewer."""
    passed = 0
    if source.seekable():
        passed = min(count, left_in(source).count)
        source.seek(passed, os.SEEK_CUR)
    else:
        while passed < count and (data := source.read(min(1 << 20, count - passed))):
            passed += len(data)
    if passed < count:
        message = f"there are {passed} bytes, and so no offset {count}: give a smaller --offset"
        raise StreamError(message, offset=0)


def _no_stream(source: BinaryIO, beginning: bytes, layers: list[str], offset: int) -> str:
    """Return one line that says what the source is instead of a stream, or where a stream begins in
    it.
    """
    # Only this error path needs these modules, which are slow to load.
    from .recognised import recognised  # noqa: PLC0415
    from .search import MAX_SEARCHED, find_stream  # noqa: PLC0415

    known = recognised(beginning)
    start = "no QEVM" if any(beginning) else "nothing but zeros"
    if known is not None and known.packed:
        return known.message
    what = f"not a migration stream: {start} at its start" if known is None else known.message
    place = find_stream(source)
    if place is not None:
        where = "" if not layers else f" of the {layers[-1]} data"
        said = f"{what}; {place.what} begins at offset {offset + place.offset}{where}"
        return f"{said}: --offset {offset + place.offset}" if not layers else said
    return (
        what
        if known is not None
        else f"{what}, and no stream in its first {format_size(MAX_SEARCHED)}"
    )


def _state(source: BinaryIO, head: bytes, snapshot: str | None, inside: bool) -> BinaryIO:
    if not head.startswith(qcow2.MAGIC):
        raise StreamError("not a qcow2 image, so it has no snapshots", offset=0)
    if inside or not source.seekable():
        raise UnsupportedError("a qcow2 image has to be a file of its own", offset=0)
    disk = Image(source)
    if snapshot is None:
        raise ChooseSnapshotError(disk.snapshots)
    return cast(BinaryIO, io.BufferedReader(MachineState(disk, disk.find(snapshot))))


def _peek(source: BinaryIO, size: int) -> bytes:
    """Return the first `size` bytes (fewer at the end) without consuming them."""
    head = b""
    while len(head) < size and (more := source.read(size - len(head))):
        head += more
    give_back(source, head)
    return head
