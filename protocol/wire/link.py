"""Declare the records on the link between two relays, each of which is a skippable zstd frame.

Data is between them in ordinary zstd frames, so a capture of the link is a valid `.zst` file.
docs/relay.md explains the order of the records. All integers inside a record are big-endian.
"""

from __future__ import annotations

from enum import IntEnum

import construct as c  # type: ignore[import-untyped]

RECORD_MAGIC = 0x184D2A56
"""Magic of the skippable frames that are records (RFC 8878 gives 16 values to applications)."""
VERSION = 1
"""Version of the link that HELLO and CHALLENGE state; both ends must state the same one."""
MAX_REASON = 400
"""Limit for the text of a refusal or a reset, in bytes of UTF-8."""
MAX_RECORD = 512
"""Limit for the content of a record, in bytes."""

SESSION_SIZE = NONCE_SIZE = 16
PROOF_SIZE = 32


class RecordType(IntEnum):
    """The kinds of records."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    REFUSED = 5
    OPEN = 6
    DATA = 7
    END = 8
    RESET = 9
    TAKEN = 10
    CLOSED = 11
    ALIVE = 12
    BYE = 13
    OUTCOME = 14


class Purpose(IntEnum):
    """The purposes for which a near relay names a session in HELLO."""

    BEGIN = 0
    """The session is new."""
    RESUME = 1
    """The session has had a connection, so a far relay that does not know it must not begin it."""
    SETTLE = 2
    """The near relay is gone: the far one is to end it, and to say what became of the guest."""


class Fate(IntEnum):
    """The part of a guest that a destination has after a migration that ended in the middle."""

    UNKNOWN = 0
    LACKS = 1
    """The destination does not have the whole guest, and never will."""
    HAS = 2
    """The destination has the whole guest, and may run it."""


_CHANNEL = "channel" / c.Int32ub
_POSITION = "position" / c.Int64ub
_REASON = "reason" / c.GreedyString("utf-8")

BODIES = {
    RecordType.HELLO: c.Struct(
        "version" / c.Int16ub,
        "session" / c.Bytes(SESSION_SIZE),
        "nonce" / c.Bytes(NONCE_SIZE),
        "number" / c.Int8ub,
        "connections" / c.Int8ub,
        "purpose" / c.Int8ub,
    ),
    RecordType.CHALLENGE: c.Struct("version" / c.Int16ub, "nonce" / c.Bytes(NONCE_SIZE)),
    RecordType.PROOF: c.Struct("proof" / c.Bytes(PROOF_SIZE)),
    RecordType.WELCOME: c.Struct("proof" / c.Bytes(PROOF_SIZE)),
    RecordType.REFUSED: c.Struct(_REASON),
    RecordType.OPEN: c.Struct(_CHANNEL),
    RecordType.DATA: c.Struct(_CHANNEL, _POSITION, "length" / c.Int32ub, "frame_size" / c.Int32ub),
    RecordType.END: c.Struct(_CHANNEL, _POSITION),
    RecordType.RESET: c.Struct(_CHANNEL, _REASON),
    RecordType.TAKEN: c.Struct(_CHANNEL, _POSITION),
    RecordType.CLOSED: c.Struct(_CHANNEL),
    RecordType.ALIVE: c.Struct(),
    RecordType.BYE: c.Struct(),
    RecordType.OUTCOME: c.Struct("proof" / c.Bytes(PROOF_SIZE), "fate" / c.Int8ub, _REASON),
}
"""Body of each kind of record."""

RecordHead = c.Struct("magic" / c.Int32ul, "size" / c.Int32ul)
"""Head of a record as RFC 8878 lays out a skippable frame; `size`: bytes that follow."""
CHECKSUM_SIZE = 4
"""Bytes at the end of a record: the low half of XXH64 of the record's type and body."""
