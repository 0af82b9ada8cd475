"""Reads the header, XML and cookie of a libvirt save image, as far as they are intact.

The stream needs only its own offset: damage in the XML, the cookie or a number of the header is
recorded, and only commands that need the XML fail. If the stream does not begin where the header
says, it is found by its magic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, BinaryIO
from xml.parsers import expat

from ...protocol.errors import StreamError, UnsupportedError
from ...protocol.formats import libvirt
from ...protocol.wire.marks import MAGIC as QEVM
from .compressed import FORMATS, format_of

MAX_XML = 16 << 20
"""The most bytes between the header of a libvirt image and its stream."""
HEAD = 16
"""The number of bytes that are used to recognise the format of data."""
_SOUND_BYTES = 14
"""The fewest bytes of the 16-byte magic that have to be right if the rest of it is damaged."""
_COMPRESSED = {format_.name: format_ for format_ in FORMATS if format_.name in libvirt.FORMATS}
_STREAM = QEVM.to_bytes(4, "big")


@dataclass(frozen=True)
class SaveImage:
    """The metadata of a libvirt save image; `format` is the compression of its stream.

    `xml` and `was_running` are None if damaged. `finished` says whether libvirt wrote the whole
    image. `damage` lists what is wrong before the stream, one line each; `xml_damage` is the line
    for the XML.
    """

    xml: str | None = field(repr=False)
    cookie: str | None = field(repr=False)
    was_running: bool | None
    format: str
    finished: bool
    damage: tuple[str, ...] = ()
    xml_damage: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys was_running (None if unknown), format, finished, damage
        (lines).
        """
        return {
            "was_running": self.was_running,
            "format": self.format,
            "finished": self.finished,
            "damage": list(self.damage),
        }


def magic_of(head: bytes) -> bytes | None:
    """Return the libvirt magic that the first 16 bytes are, allowing two damaged bytes, or None."""
    found = (libvirt.MAGIC, libvirt.UNFINISHED_MAGIC)
    if head in found:
        return head
    if len(head) < HEAD:
        return None
    nearest = max(found, key=lambda magic: _equal_bytes(magic, head))
    return nearest if _equal_bytes(nearest, head) >= _SOUND_BYTES else None


def _equal_bytes(one: bytes, other: bytes) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def read_save_image(source: BinaryIO) -> tuple[SaveImage, int, bytes]:
    """Return the metadata of a save image, the offset of its stream, and the stream bytes already
    read.

    The offset counts from the first byte of the image. Raises StreamError if the stream is not
    found, UnsupportedError for a version or format that newer versions of libvirt may have.
    """
    raw = source.read(libvirt.HEADER_SIZE)
    if len(raw) < libvirt.HEADER_SIZE:
        raise StreamError("the libvirt image ends within its header", offset=len(raw))
    damage: list[str] = []
    magic = magic_of(raw[:HEAD])
    if raw[:HEAD] != magic:
        damage.append("offset 0x0: the libvirt image's magic is damaged")
    header = _header(raw)
    data, rest = _data_and_rest(source, header.data_length if header is not None else 0)
    if header is None or not _begins_stream(rest):
        header, data, rest = _search(raw, header, data + rest, source, damage)
    at = libvirt.HEADER_SIZE + len(data)
    name = _format(header, rest, at, damage)
    xml, xml_damage = _xml(data)
    if xml_damage is not None:
        damage.append(xml_damage)
    cookie = _cookie(data, header.cookie_offset, damage)
    was_running = bool(header.was_running) if header.was_running in (0, 1) else None
    if was_running is None:
        damage.append(f"offset 0x18: was-running is {header.was_running}, neither 0 nor 1")
    finished = magic != libvirt.UNFINISHED_MAGIC
    image = SaveImage(xml, cookie, was_running, name, finished, tuple(damage), xml_damage)
    return image, at, rest


def _header(raw: bytes) -> Any:
    """Return the header in the byte order of the host that wrote it, or None if its version is
    unknown.
    """
    headers = (one.parse(raw) for one in libvirt.HEADERS)
    return next((header for header in headers if header.version in (1, 2)), None)


def _data_and_rest(source: BinaryIO, length: int) -> tuple[bytes, bytes]:
    """Return the data between header and stream if its length is valid, and the first bytes after
    it.
    """
    data = source.read(length) if 0 < length <= MAX_XML else b""
    return (data, source.read(HEAD)) if len(data) == length else (data, b"")


def _begins_stream(head: bytes) -> bool:
    return head.startswith(_STREAM) or format_of(head) is not None


def _search(
    raw: bytes, header: Any, read: bytes, source: BinaryIO, damage: list[str]
) -> tuple[Any, bytes, bytes]:
    """Find the stream by its magic; return the header, the data before the stream, and the rest
    read.

    If the magic is not found, the header is trusted, or rejected if its length is not possible.
    """
    length = header.data_length if header is not None else 0
    read += source.read(MAX_XML + HEAD - len(read))
    guesses = [one.parse(raw) for one in libvirt.HEADERS] if header is None else [header]
    for guess in guesses:
        if 0 < guess.data_length < len(read) and _begins_stream(read[guess.data_length :][:HEAD]):
            damage.append(f"offset 0x10: version {guess.version} of a libvirt image is not known")
            return guess, read[: guess.data_length], read[guess.data_length :]
    if header is None:
        raise UnsupportedError("this version of a libvirt image", offset=16)
    found = _first_stream(read)
    if found is not None:
        place = libvirt.HEADER_SIZE + found
        damage.append(
            f"offset 0x14: the header says {length} bytes before the stream, "
            f"which begins at offset {place:#x}"
        )
        return header, read[:found], read[found:]
    if not 0 < length <= MAX_XML:
        raise StreamError(f"{length} bytes of XML in the libvirt image", offset=20)
    if len(read) < length:
        end = libvirt.HEADER_SIZE + len(read)
        raise StreamError("the libvirt image ends within its XML", offset=end)
    return header, read[:length], read[length:]


def _first_stream(read: bytes) -> int | None:
    """Return the offset of the first stream or compression magic after the XML, or None."""
    text_end = max(read.find(b"\0"), 0)
    magics = [_STREAM + b"\0\0\0\3", *(format_.magic for format_ in _COMPRESSED.values())]
    places = [place for magic in magics if (place := read.find(magic, text_end)) > 0]
    return min(places, default=None)


def _format(header: Any, rest: bytes, at: int, damage: list[str]) -> str:
    """Return the compression's name: that in the header, unless the data shows a different one."""
    known = header.format < len(libvirt.FORMATS)
    said = libvirt.FORMATS[header.format] if known else f"format {header.format}"
    found = format_of(rest)
    if known and said not in _COMPRESSED:
        # Data that the header calls raw or sparse may have been compressed before it was saved.
        return said
    if known and found is not None and found.name == said:
        return said
    if found is None and not rest.startswith(_STREAM):
        if not known:
            raise UnsupportedError(f"{said} of a libvirt image", offset=28)
        raise StreamError(f"no {said} data, as the libvirt header says", offset=at)
    shown = "raw" if found is None else found.name
    damage.append(f"offset 0x1c: the libvirt header says {said}, the stream is {shown}")
    return shown


def _xml(data: bytes) -> tuple[str | None, str | None]:
    """Return the domain XML and None, or None and what is wrong with it."""
    end = data.find(b"\0")
    raw = data if end < 0 else data[:end]
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return None, _wrong("the XML is not UTF-8", error.start)
    for index, character in enumerate(text):
        # The XML is printed unchanged, and XML allows no other control characters.
        if character < " " and character not in "\t\n\r":
            place = len(text[:index].encode())
            return None, _wrong("a control character in the XML", place)
    return _well_formed(text)


def _well_formed(text: str) -> tuple[str | None, str | None]:
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        # libvirt writes no document type, and its entities could use any amount of memory.
        raise ValueError

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text.encode(), True)
    except ValueError:
        return None, _wrong("a document type in the XML", parser.CurrentByteIndex)
    except expat.ExpatError as error:
        reason = expat.errors.messages.get(error.code, "damaged")
        return None, _wrong(f"the XML is damaged: {reason}", parser.ErrorByteIndex)
    return text, None


def _wrong(what: str, place: int) -> str:
    return f"offset {libvirt.HEADER_SIZE + place:#x}: {what}"


def _cookie(data: bytes, offset: int, damage: list[str]) -> str | None:
    """Return the cookie, or None if there is none or it is damaged."""
    if not offset:
        return None
    if not _at_text(data, offset):
        # The cookie follows the XML and its NUL.
        behind = data.find(b"\0") + 1
        what = f"the cookie is not at {offset:#x}, as the libvirt header says"
        if offset > len(data):
            what = f"the cookie lies outside of the libvirt image's data, at {offset:#x}"
        damage.append(f"offset 0x20: {what}")
        if not behind or not _at_text(data, behind):
            return None
        offset = behind
    raw = data[offset:].split(b"\0", 1)[0]
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        damage.append(_wrong("the cookie is not UTF-8", offset + error.start))
        return None
    if any(character < " " and character not in "\t\n\r" for character in text):
        damage.append(_wrong("control characters in the cookie", offset))
        return None
    return text


def _at_text(data: bytes, offset: int) -> bool:
    """Return whether a text begins at `offset`, directly after the NUL of another one."""
    return 0 < offset < len(data) and data[offset - 1] == 0 and data[offset] != 0
