"""Refuse, by name, what a stream may hold but a receiver cannot apply, before it does harm."""

from __future__ import annotations

from ..protocol import events
from ..protocol.errors import UnsupportedError
from ..protocol.reading.configuration import IGNORE_SHARED, MAPPED_RAM
from ..protocol.wire.marks import CommandType
from ..protocol.wire.ram import SECTION_NAME

_CAPABILITIES = frozenset({IGNORE_SHARED, MAPPED_RAM})
_COMMANDS = frozenset(
    {
        CommandType.POSTCOPY_LISTEN,
        CommandType.POSTCOPY_RUN,
        CommandType.POSTCOPY_RAM_DISCARD,
        CommandType.PACKAGED,
    }
)


def refuse(event: events.Event) -> None:
    """Raise UnsupportedError if the event has to be refused."""
    what, section = None, None
    if isinstance(event, events.Configuration):
        refused = [name for name in event.capabilities or () if name in _CAPABILITIES]
        what, section = (f"capability {refused[0]} is" if refused else None), "configuration"
    elif isinstance(event, events.IterativeSection):
        known = isinstance(event, events.RamSection)
        what, section = (None if known else "this kind of iterative section is"), event.name
    elif isinstance(event, events.CompressedRun):
        what, section = "COMPRESS_PAGE records are", SECTION_NAME
    elif isinstance(event, events.UnsplitDevices):
        what = "devices that nothing tells apart (no description, several possible ends) are"
    elif isinstance(event, events.NoFooters):
        what = "sections without footers (very old machine types) are"
    elif isinstance(event, events.Command) and event.command in _COMMANDS:
        what = f"command {CommandType(event.command).name} is"
    if what is not None:
        raise UnsupportedError(f"{what} not supported", offset=event.offset, section=section)
