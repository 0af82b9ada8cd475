"""Build the source's messages of a handover: PINGs, in a zstd frame if need be.

Source: QEMU's documentation, docs/devel/migration/main.rst ("Return path").
"""

from __future__ import annotations

from .events import Command
from .formats.stored_frames import stored
from .handover import Word
from .return_path import Value
from .wire.marks import CommandType
from .writer import StreamWriter


def ping(value: int) -> bytes:
    """Return a PING, which every destination answers with a PONG of the same value."""
    data = Value.build(value)
    return StreamWriter().write(Command(offset=0, command=int(CommandType.PING), data=data))


def word_on_wire(word: Word, *, framed: bool) -> bytes:
    """Return a word as it follows the end of a stream; `framed`: the stream is compressed."""
    data = ping(word)
    return b"".join(stored(memoryview(data))) if framed else data
