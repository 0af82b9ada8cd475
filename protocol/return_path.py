"""Read and write the messages that a destination sends back to the source.

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
    """The type of a message, as on the wire."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7


MessageHeader = c.Struct("type" / c.Int16ub, "length" / c.Int16ub)
Value = c.Int32ub
"""The data of SHUT and PONG: one be32."""

_MAX_DATA = 512
"""Limit for the data of a message, in bytes; QEMU sends none that is longer."""


@dataclass(frozen=True)
class Shut:
    """SHUT: the destination is done; `status` is 0 if it loaded the guest."""

    status: int


@dataclass(frozen=True)
class Pong:
    """PONG: the answer to a PING, with the PING's value."""

    value: int


@dataclass(frozen=True)
class OtherMessage:
    """A message of any other type, with its data verbatim."""

    type: int
    data: bytes


Message: TypeAlias = Shut | Pong | OtherMessage


def shut(status: int) -> bytes:
    """Return the bytes of a SHUT with this status."""
    return _build(MessageType.SHUT, Value.build(status))


def pong(value: int) -> bytes:
    """Return the bytes of a PONG with this value."""
    return _build(MessageType.PONG, Value.build(value))


def _build(kind: MessageType, data: bytes) -> bytes:
    header: bytes = MessageHeader.build({"type": kind, "length": len(data)})
    return header + data


class ReturnPathReader:
    """Reader that takes the bytes of a return path as they arrive and returns messages."""

    def __init__(self) -> None:
        self._rest = b""
        self._offset = 0

    @property
    def rest(self) -> bytes:
        """Return the bytes that were fed and are not a whole message yet."""
        return self._rest

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that are complete now.

        Raises StreamError for bytes that are not a message, but only after the messages before them
        were returned.
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
