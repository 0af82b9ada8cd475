"""Let a source through only if its destination confirms the end of the stream (law 8).

A source without a return path believes that it is done as soon as the relay beside it has its last
byte. If the link broke then, no guest would run. The stream says in its first bytes whether the
return path is open; until that is known, nothing leaves the relay.
"""

from __future__ import annotations

from ..protocol.errors import StreamError
from ..protocol.events import Command, DeviceSection, IterativeSection
from ..protocol.formats.zstd import is_compressed
from ..protocol.reader import StreamReader
from ..protocol.wire.marks import MAGIC, CommandType
from .watch import TLS

_HEAD = 4
_KNOWN = "let it through with --one-way if you know that"


class Gate:
    """A watch over the first bytes of one connection from a source."""

    def __init__(self) -> None:
        self._reader: StreamReader | None = None
        self._head = b""

    def __call__(self, data: memoryview) -> str | None:
        """Return None to let the connection pass, "" to wait, or the reason to refuse it.

        `data`: the next bytes, none at the end of the connection.
        """
        if self._reader is None:
            self._head += bytes(data)
            if len(self._head) < _HEAD and data:
                return ""
            if int.from_bytes(self._head[:_HEAD], "big") != MAGIC:
                return _foreign(self._head)
            self._reader = StreamReader()
            return self._judge(self._reader, memoryview(self._head))
        return self._judge(self._reader, data)

    @staticmethod
    def _judge(reader: StreamReader, data: memoryview) -> str | None:
        try:
            found = reader.feed(data)
        except StreamError as error:
            return f"the source sends a damaged stream: {error}"
        for event in found:
            if isinstance(event, Command) and event.command == CommandType.OPEN_RETURN_PATH:
                return None
            if isinstance(event, (IterativeSection, DeviceSection)):
                return (
                    "the source does not ask the destination to confirm the end; switch its"
                    f" capability return-path on, or {_KNOWN} the guest may be lost if the link"
                    " breaks at the end"
                )
        return "" if data else "the source ended its stream before the first section"


def _foreign(head: bytes) -> str | None:
    """Return whether a connection that is no migration stream may pass."""
    if head.startswith(TLS):
        return (
            "the stream is encrypted, so the relay cannot see whether the destination confirms the"
            f" end; {_KNOWN} it does"
        )
    if is_compressed(head):
        return "the source compresses the stream; leave that to the relay"
    return None
