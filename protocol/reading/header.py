"""Read and check the header at the start of a stream."""

from __future__ import annotations

from .. import events
from ..errors import StreamError, UnsupportedError
from ..wire import stream
from ..wire.cursor import Cursor
from ..wire.marks import MAGIC, VERSION
from ..wire.multifd import MAGIC as MULTIFD_MAGIC


def read_header(cursor: Cursor) -> events.Header:
    """Read the header. Raises StreamError if these bytes do not begin a stream."""
    start = cursor.offset
    header = cursor.take(stream.FileHeader)
    if header.magic == MULTIFD_MAGIC:
        message = (
            "this is a further connection of a source that uses several; switch that off there "
            "(migrate_set_capability multifd off)"
        )
        raise UnsupportedError(message, offset=start)
    if header.magic != MAGIC:
        raise StreamError("not a migration stream: no QEVM at its start", offset=start)
    if header.version != VERSION:
        raise UnsupportedError(f"stream version {header.version}", offset=start + 4)
    return events.Header(start, header.version)
