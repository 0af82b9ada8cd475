"""Recognize a migration stream by its first bytes."""

from __future__ import annotations

from ..protocol.formats.zstd import MAGIC as ZSTD_MAGIC
from ..protocol.formats.zstd import SKIPPABLE_MAGICS
from ..protocol.wire.marks import MAGIC

_BEGINNINGS = (
    MAGIC.to_bytes(4, "big"),
    *(magic.to_bytes(4, "little") for magic in (ZSTD_MAGIC, *SKIPPABLE_MAGICS)),
)


def begins_stream(head: bytes) -> bool | None:
    """Return whether a stream, plain or in zstd frames, can begin with these bytes.

    Return None if there are too few bytes to say.
    """
    if head.startswith(_BEGINNINGS):
        return True
    return None if any(known.startswith(head) for known in _BEGINNINGS) else False
