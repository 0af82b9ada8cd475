"""Messages that a destination sends back to the source.

Source: QEMU's documentation, docs/devel/migration/main.rst ("Return path"). Every message is be16
type, be16 length of the data, data.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import construct as c  # type: ignore[import-untyped]

from .errors import StreamError


class MessageType(IntEnum):
    """The type of a message."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7


MessageHeader = c.Struct("type" / c.Int16ub, "length" / c.Int16ub)
Value = c.Int32ub
"""The data of SHUT and PONG."""

_MAX_DATA = 512
"""Longer than any message that QEMU sends."""


@dataclass(frozen=True)
class Shut:
    """The destination is done: `status` 0 when it loaded the guest."""

    status: int


@dataclass(frozen=True)
class Pong:
    """The answer to a PING, with the PING's value."""

    value: int


@dataclass(frozen=True)
class OtherMessage:
    """Any other message, as it came."""

    type: int
    data: bytes


Message: TypeAlias = Shut | Pong | OtherMessage


def shut(status: int) -> bytes:
    """The bytes of a SHUT."""
    return _build(MessageType.SHUT, Value.build(status))


def pong(value: int) -> bytes:
    """The bytes of a PONG."""
    return _build(MessageType.PONG, Value.build(value))


def _build(kind: MessageType, data: bytes) -> bytes:
    header: bytes = MessageHeader.build({"type": kind, "length": len(data)})
    return header + data


class ReturnPathReader:
    """Takes bytes as they arrive and gives messages."""

    def __init__(self) -> None:
        self._rest = b""
        self._offset = 0

    @property
    def rest(self) -> bytes:
        """The bytes that were fed and are no whole message yet."""
        return self._rest

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that are complete now.

        Raises StreamError for what is none, but only once the messages before it were returned.
        """
        self._rest += data
        found: list[Message] = []
        while len(self._rest) >= MessageHeader.sizeof():
            header = MessageHeader.parse(self._rest)
            if header.type not in MessageType.__members__.values() or header.length > _MAX_DATA:
                if found:
                    break
                raise self._error(f"message type {header.type} of {header.length} bytes")
            end = MessageHeader.sizeof() + header.length
            if len(self._rest) < end:
                break
            data = self._rest[MessageHeader.sizeof() : end]
            if found and not _fits(header.type, data):
                break
            found.append(self._message(header.type, data))
            self._rest = self._rest[end:]
            self._offset += end
        return found

    def _message(self, kind: int, data: bytes) -> Message:
        if kind not in (MessageType.SHUT, MessageType.PONG):
            return OtherMessage(kind, data)
        if not _fits(kind, data):
            raise self._error(f"{MessageType(kind).name} with {len(data)} bytes of data")
        value = Value.parse(data)
        return Shut(value) if kind == MessageType.SHUT else Pong(value)

    def _error(self, message: str) -> StreamError:
        return StreamError(message, offset=self._offset, section="return path")


def _fits(kind: int, data: bytes) -> bool:
    """Return whether a message of this kind can have this data."""
    return kind not in (MessageType.SHUT, MessageType.PONG) or len(data) == Value.sizeof()
