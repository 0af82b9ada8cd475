"""Opens whatever a user names as a stream, and says what it stood in.

A name is a path, `-` for standard input, or `DISK.qcow2#SNAPSHOT`. What is there is told by its
first bytes: a libvirt save image, compressed data, a qcow2 image, or (anything else) the stream
itself; they may stand in one another.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from ..protocol import libvirt, qcow2
from ..protocol.errors import StreamError, UnsupportedError
from .compressed import FORMATS, format_of
from .snapshots import Image, MachineState, Snapshot, names_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_LAYERS = 4
MAX_XML = 16 << 20
"""Bytes of all that stands between a libvirt image's header and its stream."""
_COMPRESSED = {format_.name for format_ in FORMATS}
"""Names of the formats of a libvirt image that are found by magic again."""
_HEAD = 16
"""Bytes that tell what something is."""


class ChooseSnapshotError(StreamError):
    """A qcow2 image without a word which of its snapshots is meant."""

    def __init__(self, snapshots: tuple[Snapshot, ...]) -> None:
        names = names_of(snapshots)
        message = f"a qcow2 image; name a snapshot in it as FILE#SNAPSHOT: it has {names}"
        super().__init__(message, offset=0)
        self.snapshots = snapshots


@dataclass(frozen=True)
class SaveImage:
    """What a libvirt save image says beside its stream, which is compressed as `format` says.

    `finished`: libvirt wrote all of it.
    """

    xml: str = field(repr=False)
    cookie: str | None = field(repr=False)
    was_running: bool
    format: str
    finished: bool

    def as_json(self) -> dict[str, Any]:
        """Keys: was_running, format, finished."""
        return {
            "was_running": self.was_running,
            "format": self.format,
            "finished": self.finished,
        }


@dataclass(frozen=True)
class Opened:
    """A stream, at its first byte; `layers`: names of what it stood in, from the outermost on.

    Where nothing is compressed, `stream` is the file itself and can be sought in.
    """

    stream: BinaryIO
    layers: tuple[str, ...] = ()
    image: SaveImage | None = None

    def as_json(self) -> dict[str, Any]:
        """Keys: layers, libvirt (None, or see SaveImage)."""
        image = None if self.image is None else self.image.as_json()
        return {"layers": list(self.layers), "libvirt": image}


@contextmanager
def open_stream(name: str) -> Iterator[Opened]:
    """Raises StreamError for what is wrong with what the stream stands in; OSError."""
    path, snapshot = split(name)
    with click.open_file(path, "rb") as file:
        yield unpack(cast(BinaryIO, file), snapshot)


def split(name: str) -> tuple[str, str | None]:
    """Path, and a snapshot, that a name means. A file may have a # in its own name."""
    path, sign, snapshot = name.rpartition("#")
    if sign and not os.path.exists(name) and os.path.exists(path):
        return path, snapshot
    return name, None


def unpack(source: BinaryIO, snapshot: str | None) -> Opened:
    """The stream in `source`; `snapshot`: which, of a qcow2 image."""
    layers: list[str] = []
    image: SaveImage | None = None
    expected: str | None = None
    at = 0
    while True:
        head, source = _peek(source)
        if head.startswith(qcow2.MAGIC) or snapshot is not None:
            return Opened(_state(source, head, snapshot, layers), (*layers, "qcow2 snapshot"))
        if head in (libvirt.MAGIC, libvirt.UNFINISHED_MAGIC) and image is None:
            image, at = read_save_image(source)
            expected = image.format
            layers.append("libvirt save image")
            continue
        found = format_of(head)
        if expected in _COMPRESSED and (found is None or found.name != expected):
            raise StreamError(f"no {expected} data, as the libvirt header says", offset=at)
        if found is None:
            return Opened(source, tuple(layers), image)
        if len(layers) == MAX_LAYERS:
            raise StreamError(f"more than {MAX_LAYERS} layers of compression", offset=at)
        source = cast(BinaryIO, io.BufferedReader(found.open(source, at)))
        layers.append(found.name)
        at, expected = 0, None


def _state(source: BinaryIO, head: bytes, snapshot: str | None, layers: list[str]) -> BinaryIO:
    if not head.startswith(qcow2.MAGIC):
        raise StreamError("not a qcow2 image, so it has no snapshots", offset=0)
    if layers or not source.seekable():
        raise UnsupportedError("a qcow2 image has to be a file of its own", offset=0)
    disk = Image(source)
    if snapshot is None:
        raise ChooseSnapshotError(disk.snapshots)
    return cast(BinaryIO, io.BufferedReader(MachineState(disk, disk.find(snapshot))))


def read_save_image(source: BinaryIO) -> tuple[SaveImage, int]:
    """What stands before the stream of a libvirt image, and how many bytes that is."""
    raw = source.read(libvirt.HEADER_SIZE)
    if len(raw) < libvirt.HEADER_SIZE:
        raise StreamError("the libvirt image ends within its header", offset=len(raw))
    header = next(
        (head for head in (one.parse(raw) for one in libvirt.HEADERS) if head.version in (1, 2)),
        None,
    )
    if header is None:
        raise UnsupportedError("this version of a libvirt image", offset=16)
    if header.format >= len(libvirt.FORMATS):
        raise UnsupportedError(f"format {header.format} of a libvirt image", offset=28)
    if not 0 < header.data_length <= MAX_XML:
        message = f"{header.data_length} bytes of XML in the libvirt image"
        raise StreamError(message, offset=20)
    if header.cookie_offset > header.data_length:
        raise StreamError("the cookie lies outside of the libvirt image's data", offset=32)
    data = source.read(header.data_length)
    end = libvirt.HEADER_SIZE + len(data)
    if len(data) < header.data_length:
        raise StreamError("the libvirt image ends within its XML", offset=end)
    cookie = None
    if header.cookie_offset:
        cookie = _text(data, header.cookie_offset, header.data_length)
    image = SaveImage(
        _text(data, 0, header.cookie_offset or header.data_length),
        cookie,
        bool(header.was_running),
        libvirt.FORMATS[header.format],
        header.magic == libvirt.MAGIC,
    )
    return image, end


def _text(data: bytes, start: int, end: int) -> str:
    """XML, up to the first NUL."""
    raw = data[start:end].split(b"\0", 1)[0]
    offset = libvirt.HEADER_SIZE + start
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise StreamError("the XML is not UTF-8", offset=offset + error.start) from None
    # It is shown as it is; and XML has no other control characters.
    if any(character < " " and character not in "\t\n\r" for character in text):
        raise StreamError("control characters in the XML", offset=offset)
    return text


def _peek(source: BinaryIO) -> tuple[bytes, BinaryIO]:
    """The first bytes, and a source that still has them."""
    head = b""
    while len(head) < _HEAD and (more := source.read(_HEAD - len(head))):
        head += more
    if source.seekable():
        source.seek(-len(head), os.SEEK_CUR)
        return head, source
    return head, cast(BinaryIO, io.BufferedReader(_Rejoined(head, source)))


class _Rejoined(io.RawIOBase):
    """Bytes that were read already, and the source that they came from."""

    def __init__(self, head: bytes, source: BinaryIO) -> None:
        self._head = head
        self._source = source

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, target: WriteableBuffer, /) -> int:
        """The head first."""
        view = memoryview(target).cast("B")
        if not self._head:
            # One that is a socket or a pipe gives what it has.
            return cast(int, self._source.readinto(view))  # type: ignore[attr-defined]
        count = min(len(view), len(self._head))
        view[:count] = self._head[:count]
        self._head = self._head[count:]
        return count
