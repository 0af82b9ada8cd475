"""Check and read the data of a stream's commands.

Source: QEMU's documentation, docs/devel/migration/main.rst and postcopy.rst.
"""

from __future__ import annotations

from typing import Any

from ..errors import StreamError, UnsupportedError
from . import stream
from .marks import COMMAND_LENGTHS, CommandType

_DECLARATIONS = {
    CommandType.POSTCOPY_ADVISE: stream.PostcopyAdvice,
    CommandType.POSTCOPY_RAM_DISCARD: stream.RamDiscard,
    CommandType.PACKAGED: stream.PackageLength,
}


def read_command(command: int, data: bytes, offset: int) -> Any:
    """Return the data of a command, parsed as declared in `stream`; None if nothing is declared.

    POSTCOPY_ADVISE may have no data: RAM is not postcopied then. Raises StreamError, or
    UnsupportedError for commands that make no sense without the other end: COLO and recovery after
    a break.
    """
    if command not in list(CommandType):
        raise StreamError(f"unknown command {command}", offset=offset)
    kind = CommandType(command)
    length = COMMAND_LENGTHS.get(kind)
    if kind == CommandType.POSTCOPY_ADVISE and not data:
        length = 0
    if length is None and kind not in _DECLARATIONS:
        raise UnsupportedError(f"command {kind.name} is not supported", offset=offset)
    try:
        if length is None:
            return _DECLARATIONS[kind].parse(data)
        if len(data) == length:
            return None
    except stream.DeclarationError:
        pass
    message = f"a {kind.name} command of {len(data)} bytes makes no sense"
    raise StreamError(message, offset=offset)
