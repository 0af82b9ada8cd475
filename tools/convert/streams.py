"""Copies a stream from one container into another, and checks it by reading it at the same time."""

from __future__ import annotations

import bz2
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import zstandard

from ...protocol import events
from ...protocol.formats import libvirt
from ...protocol.reading.configuration import MAPPED_RAM
from ...protocol.writer import StreamWriter
from ..console.failure import CommandError, named
from ..console.text import open_file
from ..rebuild.arrivals import Arrivals
from ..rebuild.staged import Staged
from ..sources.containers import Opened
from ..sources.save_image import MAX_XML, SaveImage
from ..sources.source import Left
from ..sources.stream_events import USUALLY, Behind, Found, How, Reading, from_a_pipe, read_events
from .mapped_stream import MappedFile, one_channel, plain_events

FRAME = 1 << 20
"""The bytes of stream in one zstd frame, a size that `vmferry receive` decompresses at once."""
LEVEL = 3
"""The compression level of zstd, which is its own default."""
SPARSE_IMAGE = "libvirt:sparse"
"""The container name of a mapped-ram file after a libvirt header."""


class ConvertError(CommandError):
    """Raised if the requested container cannot be written; the message is one line."""


class Compressor(Protocol):
    """The common interface of the zlib, bz2 and lzma compressors."""

    def compress(self, data: memoryview, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    """A compressor that returns the data unchanged."""

    def compress(self, data: memoryview) -> bytes:
        return cast(bytes, data)

    def flush(self) -> bytes:
        return b""


class _Frames:
    """A compressor that writes consecutive zstd frames with their content sizes."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(LEVEL, write_content_size=True)

    def compress(self, data: memoryview) -> bytes:
        pieces = (data[start : start + FRAME] for start in range(0, len(data), FRAME))
        return b"".join(map(self._compressor.compress, pieces))

    def flush(self) -> bytes:
        return b""


COMPRESSORS: dict[str, Callable[[], Compressor]] = {
    "raw": _Plain,
    "zstd": _Frames,
    "gzip": lambda: zlib.compressobj(wbits=31),
    "bzip2": bz2.BZ2Compressor,
    "xz": lzma.LZMACompressor,
}
"""The compressors by their names in a libvirt image."""
CONTAINERS = {
    "plain": "raw",
    **{name: name for name in COMPRESSORS if name != "raw"},
    **{f"libvirt:{name}": name for name in COMPRESSORS},
    "libvirt": "raw",
    SPARSE_IMAGE: "sparse",
    MAPPED_RAM: "sparse",
}
"""The possible containers, and the format of the stream in each, by its name in a libvirt image."""


@dataclass
class Converted:
    """The result of a conversion: `size` bytes of stream became `written` bytes of output. `behind`
    counts the bytes after the source stream; `arrivals` tracks which pages arrived.
    """

    size: int = 0
    written: int = 0
    behind: Left | None = None
    arrivals: Arrivals = field(default_factory=Arrivals)

    def note(self, found: Iterable[Found]) -> Iterator[events.Event]:
        """Record the bytes after the stream and the arrived pages, and yield all events of the
        stream.
        """
        for event in found:
            if isinstance(event, Behind):
                self.behind = event.left
            else:
                self.arrivals.take(event)
                yield event


def convert(
    opened: Opened,
    out: Path,
    container: str,
    *,
    xml: str | None = None,
    how: How = USUALLY,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Converted:
    """Write the stream to `out` (`-` is standard output), in one of CONTAINERS.

    `xml` is the domain XML for a libvirt image; None uses that of `opened`. `how` has the options
    of `read_events`. `on_progress` is called with the bytes of stream written so far, except for
    mapped-ram files. The file is only created if everything succeeds. Raises StreamError,
    CommandError, OSError.
    """
    name = CONTAINERS[container]
    head = b""
    if container.startswith("libvirt"):
        head = _save_image_head(opened.image, _domain_xml(opened.image, xml), name)
    if name == "sparse":
        return _to_mapped_ram(opened, out, head, how)
    compressor = COMPRESSORS[name]()
    found = Converted()
    with _output(out) as write:
        found.written += write(head)
        for piece in plain_stream(opened, how, found):
            found.written += write(compressor.compress(piece))
            found.size += len(piece)
            on_progress(found.size)
        found.written += write(compressor.flush())
    return found


def _to_mapped_ram(opened: Opened, out: Path, head: bytes, how: How) -> Converted:
    if str(out) == "-":
        raise ConvertError("a mapped-ram file is written at any place: it needs a file")
    found = Converted()
    with Staged() as staged:
        with os.fdopen(staged.file(out), "r+b") as file:
            with named(out):
                mapped = MappedFile(file.fileno(), head)
            for event in found.note(read_events(opened.stream, how, opened.channels)):
                with named(out):
                    mapped.take(event)
            with named(out):
                found.size = found.written = mapped.finish()
        staged.keep()
    return found


def plain_stream(opened: Opened, how: How, into: Converted) -> Iterator[memoryview]:
    """Yield the bytes of a stream up to its end; each piece is valid until the next.

    A mapped-ram file or a multifd migration is converted to an ordinary stream. Bytes after the
    stream are recorded in `into`. Raises StreamError.
    """
    stream, channels = opened.stream, opened.channels
    if channels is not None:
        found = into.note(read_events(stream, how, channels))
        for event in one_channel(found):
            yield memoryview(StreamWriter().write(event))
        return
    if not is_mapped(stream, how):
        yield from whole_stream(stream, how, into)
        return
    for event in plain_events(into.note(read_events(stream, how))):
        yield memoryview(StreamWriter().write(event))


def is_mapped(stream: BinaryIO, how: How) -> bool:
    """Return whether the stream is a mapped-ram file; it has to be seekable. Raises StreamError."""
    if not stream.seekable():
        return False
    start = stream.tell()
    found = read_events(stream, how)
    listed = next((event for event in found if isinstance(event, events.RamBlocks)), None)
    stream.seek(start)
    return listed is not None and any(block.mapped is not None for block in listed.blocks)


def whole_stream(stream: BinaryIO, how: How, into: Converted) -> Iterator[memoryview]:
    """Yield the unchanged bytes of a stream up to its end. Raises StreamError.

    Bytes after the stream are recorded in `into`.
    """
    reading = Reading(stream, how)
    for found, piece in reading.pieces():
        for event in found:
            if isinstance(event, events.RamBlocks) and any(block.mapped for block in event.blocks):
                raise from_a_pipe(event)
            into.arrivals.take(event)
        yield piece
    left = reading.left()
    into.behind = left if left.count or left.guessed else None


@contextmanager
def _output(path: Path) -> Iterator[Callable[[bytes], int]]:
    """Open the file, or standard output, and yield a function that writes bytes to it and returns
    their number.
    """
    with ExitStack() as stack:
        staged: Staged | None = None
        if str(path) == "-":
            output = stack.enter_context(open_file("-", "wb"))
            # Buffered data would fail again when the command ends, so use the raw file.
            file, what = getattr(output, "raw", output), "standard output"
        else:
            staged, what = stack.enter_context(Staged()), str(path)
            file = stack.enter_context(os.fdopen(staged.file(path), "wb", buffering=0))

        def write(data: bytes) -> int:
            view = memoryview(data)
            with named(what):
                while view:
                    view = view[file.write(view) :]
            return len(data)

        yield write
        if staged is not None:
            staged.keep()


def _domain_xml(old: SaveImage | None, given: str | None) -> str:
    """Return the XML for a libvirt image: the given one, or else that of the source image."""
    if given is None and old is None:
        raise ConvertError("a libvirt image needs the domain's XML: give --xml FILE")
    found = old.xml if given is None and old is not None else given
    if found is None:
        assert old is not None
        raise ConvertError(f"{old.xml_damage}; give the domain's XML: --xml FILE")
    if "<domain" not in found or "\0" in found:
        raise ConvertError("this is not the XML of a domain")
    return found


def _save_image_head(old: SaveImage | None, text: str, name: str) -> bytes:
    """Return everything before the stream of a libvirt image; `old` is the image that was read."""
    xml = text.encode() + b"\0"
    cookie = b"" if old is None or old.cookie is None else old.cookie.encode() + b"\0"
    running = old is None or old.was_running is not False
    length = len(xml) + len(cookie) + libvirt.PADDING
    if length > MAX_XML:
        raise ConvertError(f"{length} bytes of XML are more than {MAX_XML}")
    # libvirt writes the byte order of its host, and swaps a header in the other one.
    declaration = libvirt.HEADERS[sys.byteorder == "big"]
    header: bytes = declaration.build(
        {
            "magic": libvirt.MAGIC,
            "version": libvirt.VERSION,
            "data_length": length,
            "was_running": int(running),
            "format": libvirt.FORMATS.index(name),
            "cookie_offset": len(xml) if cookie else 0,
        }
    )
    return header + (xml + cookie).ljust(length, b"\0")
