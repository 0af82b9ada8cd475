"""Read the section `pbs-state` of Proxmox VE: a be64, and as many bytes of unknown format.

The section has only a START piece. Source: streams of Proxmox VE's QEMU.
"""

from __future__ import annotations

from collections.abc import Callable

import construct as c  # type: ignore[import-untyped]

from .. import events
from ..errors import StreamError
from ..wire.cursor import Cursor, Incomplete
from ..wire.kept import Kept
from ..wire.marks import SectionType

SECTION_NAME = "pbs-state"
SECTION_VERSION = 1

Length = c.Int64ub
_SIZE: int = Length.sizeof()


class PbsStateReader:
    """Reader of one `pbs-state` section.

    `keep`: makes the place where its bytes are kept; `max_size`: limit for them, None for no limit.
    """

    def __init__(self, keep: Callable[[], Kept], max_size: int | None) -> None:
        self.at_end = False
        self._keep = keep
        self._max_size = max_size
        self._payload = keep()
        self._length: int | None = None

    def begin(self, kind: SectionType) -> None:  # noqa: ARG002
        """Begin the section."""
        self.at_end, self._length, self._payload = False, None, self._keep()

    def read(self, cursor: Cursor) -> list[events.Event]:
        """Return the piece with its length, once all of it was read. Raises StreamError."""
        if self._length is None:
            length = _SIZE + cursor.peek_u64()
            if self._max_size is not None and length > self._max_size:
                message = f"{length} bytes, more than {self._max_size} (--max-device-state)"
                raise StreamError(message, offset=cursor.offset)
            self._length = length
        end = min(len(cursor.view), cursor.position + self._length - self._payload.size)
        self._payload.append(cursor.view[cursor.position : end])
        cursor.position = end
        cursor.commit()
        if self._payload.size < self._length:
            raise Incomplete
        self.at_end = True
        offset = cursor.offset - self._length
        return [events.OpaquePiece(offset, self._payload.part(0, self._length))]
