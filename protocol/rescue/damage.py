"""The reports on a damaged stream: lost pieces, corrected bits, and pages of an unknown block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .. import events


@dataclass(frozen=True)
class Place:
    """A page: the index of its block, and its position in the block, in bytes."""

    block: int
    address: int


@dataclass(frozen=True)
class Damage:
    """The bytes from `offset` to `end` of the stream, which are lost.

    `message`: the fault; `before`: the last page before them, `doubtful` if the damage may have
    begun in it; `behind`: the first page after them. Each is None if there is no such page, or if
    its block is not known. `guessed`: pages after them, up to the next record that names its block,
    are assigned to the block before them, which is likely but not certain. `in_ram`: the damage may
    have cost pages; `shifted`: bytes may be missing, so that more is lost than these.
    """

    offset: int
    end: int
    message: str
    before: Place | None
    behind: Place | None = None
    doubtful: bool = False
    guessed: bool = False
    in_ram: bool = True
    shifted: bool = True


@dataclass(frozen=True)
class Unplaced:
    """Pages after damage, `count` from `offset` on, whose block is not known."""

    offset: int
    count: int


@dataclass(frozen=True)
class Mended:
    """A wrong bit at `offset`, in the header of a record or section, that was corrected.

    All else confirms the correction.
    """

    offset: int


Salvaged: TypeAlias = events.Event | Damage | Mended | Unplaced
"""An item that Salvage yields: an event of the stream, or a report on damage to it."""
