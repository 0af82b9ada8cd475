"""Read device sections before RAM, or in the package of a postcopy, one at a time.

Nothing has confirmed their lengths yet: a section ends where its described size says, or else at
the first footer that a valid part of a stream follows.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import events
from ..devices import section_ends
from ..errors import StreamError
from ..wire import stream
from ..wire.cursor import Cursor, Incomplete
from ..wire.kept import Kept
from .device_limit import check_device_state
from .section_table import SectionStart

DescribedSize = Callable[[int, int, str, int], int | None]
"""Function that returns the bytes of payload of a device section, or None if unknown.

Arguments: the payload's offset, the section's id, name and instance id.
"""


class EarlyDevices:
    """Reader of device sections before RAM, which keeps those that were read.

    `known`: the parts of the stream so far; `keep`: makes the place where a payload is kept;
    `max_size`: limit for a payload in bytes, None for no limit.
    """

    def __init__(
        self,
        known: section_ends.Known,
        keep: Callable[[], Kept],
        max_size: int | None,
        described_size: DescribedSize | None,
    ) -> None:
        self.found: list[events.DeviceSection] = []
        """The sections that were read."""
        self._known = known
        self._keep = keep
        self._max_size = max_size
        self._described_size = described_size
        self._section: SectionStart | None = None
        self._payload: Kept = keep()
        self._size: int | None = None

    def begin(self, section: SectionStart, offset: int) -> None:
        """Begin a section whose payload is at `offset` in the stream."""
        self._section, self._payload, self._size = section, self._keep(), None
        if self._described_size is not None:
            ids = (section.section_id, section.name, section.instance_id)
            self._size = self._described_size(offset, *ids)

    def read(self, cursor: Cursor) -> events.DeviceSection:
        """Return the section once its footer is found; raise Incomplete until then.

        Raises StreamError if it is too large, or if no footer is where its size is described.
        """
        section = self._section
        assert section is not None
        if self._size is None:
            end, found = section_ends.find_end(cursor, section.section_id, self._known)
        else:
            end = cursor.position + self._size - self._payload.size
            found = end <= len(cursor.view)
        self._collect(cursor, end)
        if not found:
            raise Incomplete
        size = self._payload.size
        footer = cursor.take(stream.SectionFooter)
        if footer.section_id != section.section_id:
            message = f"no footer behind the {size} bytes that are described"
            raise StreamError(message, offset=cursor.offset - size)
        event = events.DeviceSection(
            section.offset,
            section.section_id,
            section.name,
            section.instance_id,
            section.version,
            self._payload.part(0, size),
            cursor.offset - size - stream.FOOTER_SIZE,
        )
        self.found.append(event)
        return event

    def _collect(self, cursor: Cursor, end: int) -> None:
        """Keep everything up to the position `end`, as far as it has arrived."""
        end = min(end, len(cursor.view))
        size = self._payload.size + end - cursor.position
        check_device_state(size, self._max_size, cursor.offset)
        if end > cursor.position:
            self._payload.append(cursor.view[cursor.position : end])
            cursor.position = end
        cursor.commit()
