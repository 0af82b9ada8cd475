"""What a stream may hold that a receiver cannot apply: refused by name, before it does harm."""

from __future__ import annotations

from ..protocol import events
from ..protocol.configuration import IGNORE_SHARED
from ..protocol.errors import UnsupportedError
from ..protocol.ram import SECTION_NAME

_CAPABILITIES = frozenset({IGNORE_SHARED})


def refuse(event: events.Event) -> None:
    """Raises UnsupportedError for what has to be refused."""
    if isinstance(event, events.Configuration):
        for name in event.capabilities or ():
            if name in _CAPABILITIES:
                message = f"capability {name} is not supported"
                raise UnsupportedError(message, offset=event.offset, section="configuration")
    elif isinstance(event, events.CompressedRun):
        message = "COMPRESS_PAGE records are not supported"
        raise UnsupportedError(message, offset=event.offset, section=SECTION_NAME)
