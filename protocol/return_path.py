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

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises StreamError for what is none."""
        self._rest += data
        found: list[Message] = []
        while len(self._rest) >= MessageHeader.sizeof():
            header = MessageHeader.parse(self._rest)
            if header.type not in MessageType.__members__.values() or header.length > _MAX_DATA:
                raise self._error(f"message type {header.type} of {header.length} bytes")
            end = MessageHeader.sizeof() + header.length
            if len(self._rest) < end:
                break
            found.append(self._message(header.type, self._rest[MessageHeader.sizeof() : end]))
            self._rest = self._rest[end:]
            self._offset += end
        return found

    def _message(self, kind: int, data: bytes) -> Message:
        if kind not in (MessageType.SHUT, MessageType.PONG):
            return OtherMessage(kind, data)
        if len(data) != Value.sizeof():
            raise self._error(f"{MessageType(kind).name} with {len(data)} bytes of data")
        value = Value.parse(data)
        return Shut(value) if kind == MessageType.SHUT else Pong(value)

    def _error(self, message: str) -> StreamError:
        return StreamError(message, offset=self._offset, section="return path")
