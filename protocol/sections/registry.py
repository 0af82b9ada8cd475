"""Choose the reader of each iterative section, and skip those of unknown format.

An iterative section consists of pieces (START, PARTs, END) and delimits itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .. import events
from ..devices import section_ends
from ..errors import StreamError, UnsupportedError
from ..wire import block as disks
from ..wire import dirty_bitmap as bitmaps
from ..wire import htab as tables
from ..wire import storage_attributes as attributes
from ..wire.cursor import Cursor, Incomplete
from ..wire.kept import Kept
from ..wire.marks import SectionType
from . import pbs_state
from .block import BlockReader
from .dirty_bitmap import DirtyBitmapReader
from .htab import HtabReader
from .storage_attributes import StorageAttributesReader


class SectionReader(Protocol):
    """Interface of the reader of one iterative section, which keeps its state over all pieces."""

    at_end: bool
    """True once the piece's last record was read."""

    def begin(self, kind: SectionType) -> None:
        """Begin a piece of the section; the piece's header was read."""

    def read(self, cursor: Cursor) -> Sequence[events.Event]:
        """Return the events of the next record; none if a record takes more than one step."""


class OpaqueReader:
    """Reader of a section of unknown format, which skips each piece by its footer.

    That is the first footer with this section id that is followed by a valid part of a stream.
    Without footers such a section cannot be skipped. `keep`: makes the place where a piece is kept.
    `max_size`: limit for one piece in bytes, None for no limit.
    """

    def __init__(
        self,
        section_id: int,
        known: section_ends.Known,
        keep: Callable[[], Kept],
        max_size: int | None,
    ) -> None:
        self.at_end = False
        self._section_id = section_id
        self._known = known
        self._keep = keep
        self._max_size = max_size
        self._payload = keep()

    def begin(self, kind: SectionType) -> None:  # noqa: ARG002
        """Begin a piece of the section."""
        self.at_end = False

    def read(self, cursor: Cursor) -> list[events.Event]:
        """Return the piece once its footer is found; raise Incomplete until then.

        Raises StreamError if the piece is larger than `max_size`.
        """
        end, found = section_ends.find_end(cursor, self._section_id, self._known)
        end = min(end, len(cursor.view))
        size = self._payload.size + end - cursor.position
        if self._max_size is not None and size > self._max_size:
            message = f"more than {self._max_size} bytes of an unknown section, without a footer"
            raise StreamError(f"{message} (--max-device-state)", offset=cursor.offset)
        self._payload.append(cursor.view[cursor.position : end])
        cursor.position = end
        cursor.commit()
        if not found:
            raise Incomplete
        self.at_end = True
        payload, self._payload = self._payload.part(0, size), self._keep()
        return [events.OpaquePiece(cursor.offset - size, payload)]


_KNOWN: dict[tuple[str, int], Callable[[], SectionReader]] = {
    (disks.SECTION_NAME, disks.SECTION_VERSION): BlockReader,
    (bitmaps.SECTION_NAME, bitmaps.SECTION_VERSION): DirtyBitmapReader,
    (tables.SECTION_NAME, tables.SECTION_VERSION): HtabReader,
    (attributes.SECTION_NAME, attributes.SECTION_VERSION): StorageAttributesReader,
}
"""Readers of sections of known format, by name and version."""


def reader_of(
    section: events.IterativeSection,
    known: section_ends.Known,
    *,
    footers: bool,
    keep: Callable[[], Kept],
    max_size: int | None,
) -> SectionReader:
    """Return a reader for a section other than `ram`.

    Raises UnsupportedError for a section of unknown format in a stream without footers.
    """
    kind = (section.name, section.version)
    if kind == (pbs_state.SECTION_NAME, pbs_state.SECTION_VERSION):
        return pbs_state.PbsStateReader(keep, max_size)
    make = _KNOWN.get(kind)
    if make is not None:
        return make()
    if not footers:
        message = "this kind of section cannot be passed without footers"
        raise UnsupportedError(message, offset=section.offset, section=section.name)
    return OpaqueReader(section.section_id, known, keep, max_size)
