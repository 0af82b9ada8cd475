"""Build and read the records on the link between two relays, and the frames between them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import construct as c  # type: ignore[import-untyped]
import xxhash

from ..errors import VmferryError
from ..wire import link
from ..wire.link import RecordType
from ..wire.packed import is_fixed, struct_of

_HEAD = struct_of(link.RecordHead)
HEAD_SIZE = _HEAD.size


class LinkError(VmferryError):
    """The other end of a link sent something that is not the link's protocol; one line."""


class Hello(NamedTuple):
    """Opens a connection of the link: the near relay names its session and this connection.

    `nonce` is fresh; `number` is from 0 to below `connections`, those of the session. `purpose` is
    one of `Purpose`.
    """

    version: int
    session: bytes
    nonce: bytes
    number: int
    connections: int
    purpose: int


class Challenge(NamedTuple):
    """Answers HELLO: the far relay asks for a proof that the near one knows the secret."""

    version: int
    nonce: bytes


class Proof(NamedTuple):
    """Answers CHALLENGE: the near relay proves that it knows the secret."""

    proof: bytes


class Welcome(NamedTuple):
    """Takes the connection into the session, and proves that the far relay knows the secret.

    From here on either end sends any of the records below.
    """

    proof: bytes


class Refused(NamedTuple):
    """Ends the connection before it was taken into a session; `reason` is one line."""

    reason: str


class Outcome(NamedTuple):
    """Ends the connection, as the session has ended: what the destination has of the guest.

    `fate` is one of `Fate`, and `reason` says the same in words. The proof is that of WELCOME.
    """

    proof: bytes
    fate: int
    reason: str


class Open(NamedTuple):
    """Announces a connection that a source made to the near relay."""

    channel: int


class Data(NamedTuple):
    """Announces a zstd frame of `frame_size` bytes that follows at once.

    It holds bytes `position` to `position + length` of one direction of the channel.
    """

    channel: int
    position: int
    length: int
    frame_size: int


class End(NamedTuple):
    """Announces that one direction of a channel ended in order after `position` bytes."""

    channel: int
    position: int


class Reset(NamedTuple):
    """Announces that a channel broke; the other end breaks it, too, and answers with CLOSED."""

    channel: int
    reason: str


class Taken(NamedTuple):
    """Acknowledges all bytes of a channel before `position`: the local connection took them.

    The end of the direction counts as one more byte.
    """

    channel: int
    position: int


class Closed(NamedTuple):
    """Answers RESET, however often it arrives: the channel is closed at this end."""

    channel: int


class Alive(NamedTuple):
    """Shows that this end lives; sent when nothing else was for a while."""


class Bye(NamedTuple):
    """Ends the session in order: the near relay has nothing more to send or to receive."""


Record: TypeAlias = (
    Hello
    | Challenge
    | Proof
    | Welcome
    | Refused
    | Outcome
    | Open
    | Data
    | End
    | Reset
    | Taken
    | Closed
    | Alive
    | Bye
)

_TYPES: dict[type[Any], RecordType] = {
    Hello: RecordType.HELLO,
    Challenge: RecordType.CHALLENGE,
    Proof: RecordType.PROOF,
    Welcome: RecordType.WELCOME,
    Refused: RecordType.REFUSED,
    Outcome: RecordType.OUTCOME,
    Open: RecordType.OPEN,
    Data: RecordType.DATA,
    End: RecordType.END,
    Reset: RecordType.RESET,
    Taken: RecordType.TAKEN,
    Closed: RecordType.CLOSED,
    Alive: RecordType.ALIVE,
    Bye: RecordType.BYE,
}
_CLASSES = {kind: record for record, kind in _TYPES.items()}
_KINDS = frozenset(RecordType)
_STRUCTS = {kind: struct_of(body) for kind, body in link.BODIES.items() if is_fixed(body)}


def build_record(record: Record) -> bytes:
    """Return the bytes of a record, as a skippable frame."""
    kind = _TYPES[type(record)]
    fixed = _STRUCTS.get(kind)
    body: bytes = (
        link.BODIES[kind].build(record._asdict()) if fixed is None else fixed.pack(*record)
    )
    content = bytes([kind]) + body
    content += _checksum(content)
    return _HEAD.pack(link.RECORD_MAGIC, len(content)) + content


def content_size(head: bytes | bytearray | memoryview) -> int:
    """Return the bytes of content that follow a record's head of HEAD_SIZE bytes.

    Raises LinkError if it is not the head of a record.
    """
    magic, size = _HEAD.unpack(head)
    if magic != link.RECORD_MAGIC:
        raise LinkError("the other end of the link is not a vmferry relay")
    if not link.CHECKSUM_SIZE < size <= link.MAX_RECORD:
        raise LinkError(f"a record of the link has {size} bytes")
    return int(size)


def read_record(content: bytes | bytearray | memoryview) -> Record:
    """Return the record with this content. Raises LinkError."""
    content = bytes(content)
    checked, checksum = content[: -link.CHECKSUM_SIZE], content[-link.CHECKSUM_SIZE :]
    if _checksum(checked) != checksum:
        raise LinkError("a record of the link is damaged: its checksum does not fit")
    if checked[0] not in _KINDS:
        raise LinkError(f"a record of the link is of no known kind ({checked[0]})")
    kind = RecordType(checked[0])
    fixed = _STRUCTS.get(kind)
    if fixed is not None and fixed.size != len(checked) - 1:
        raise LinkError(f"a record {kind.name} of the link has {len(checked)} bytes")
    values = _parsed(kind, checked[1:]) if fixed is None else fixed.unpack_from(checked, 1)
    record: Record = _CLASSES[kind](*values)
    return record


def _parsed(kind: RecordType, body: bytes) -> list[Any]:
    """Return the fields of a record of variable size. Raises LinkError."""
    try:
        parsed = link.BODIES[kind].parse(body)
    except c.ConstructError as error:
        raise LinkError(f"a record {kind.name} of the link is damaged: {error}") from None
    return [parsed[name] for name in _CLASSES[kind]._fields]


def reason_of(text: str) -> str:
    """Return a text, shortened to what a record has room for."""
    return text.encode()[: link.MAX_REASON].decode(errors="ignore")


def _checksum(content: bytes) -> bytes:
    return xxhash.xxh64_digest(content)[-link.CHECKSUM_SIZE :]
