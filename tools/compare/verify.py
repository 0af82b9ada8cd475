"""Checks that a stream is complete, and that it rebuilds exactly the given RAM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from ...protocol.devices.fields import Decoder
from ...protocol.errors import StreamError
from ..rebuild.arrivals import MissingPages
from ..rebuild.block_file import BlockFile
from ..rebuild.guest import RebuildError, RebuiltGuest, absent_message, rebuild
from ..sources.source import Left
from ..sources.stream_events import USUALLY, How, read_events
from .memory import differing
from .streams import BlockDifference, compare_blocks

if TYPE_CHECKING:
    from ..sources.channels import Channels

FIRST_PAGES = 8
"""The number of differing pages that are listed."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing a RAM block with a file: the number of differing pages, and the
    offsets of the first ones.
    """

    block: str
    file: str
    count: int
    first: tuple[int, ...]

    @property
    def equal(self) -> bool:
        """Return whether all pages are equal."""
        return self.count == 0

    def describe(self) -> str:
        """Return a description for users, in one line."""
        where = ", ".join(f"{offset:#x}" for offset in self.first)
        more = ", ..." if self.count > len(self.first) else ""
        pages = "page differs" if self.count == 1 else "pages differ"
        return f"{self.block}: {self.count} {pages}, at {where}{more}"

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys block, file, equal, differing_pages, first_offsets."""
        return {
            "block": self.block,
            "file": self.file,
            "equal": self.equal,
            "differing_pages": self.count,
            "first_offsets": list(self.first),
        }


@dataclass(frozen=True)
class Report:
    """The result of verifying a valid stream.

    `described` says whether devices were checked against a description. `unchecked` has a line for
    everything that was not checked. `missing` has the pages that never arrived. `ram` compares
    blocks with files. `against` has the blocks that differ from the other stream, or None if there
    is none; `missing_there` has the pages that never arrived in it. `behind` counts the bytes after
    the stream.
    """

    described: bool
    unchecked: list[str]
    missing: list[MissingPages]
    ram: list[Comparison]
    against: list[BlockDifference] | None = None
    behind: Left | None = None
    missing_there: list[MissingPages] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Return whether nothing is missing and nothing differs."""
        missing = self.missing or self.missing_there
        return not missing and not self.against and all(block.equal for block in self.ram)

    def describe(self) -> Iterator[str]:
        """Yield a line for everything that is wrong."""
        yield from (f"{pages.describe()}{pages.hint}" for pages in self.missing)
        for pages in self.missing_there:
            yield f"in the other stream, {pages.describe()}"
        yield from (comparison.describe() for comparison in self.ram if not comparison.equal)
        yield from (block.describe() for block in self.against or ())

    def summary(self) -> str:
        """Return a short summary of a stream in which nothing is wrong."""
        equal = "; RAM is equal" if self.ram or self.against is not None else ""
        return "valid" + equal

    def as_json(self) -> dict[str, Any]:
        """Return the report as a dictionary for JSON.

        Keys: valid, error, described, unchecked (lines), unseen (of MissingPages.as_json), ram,
        against (None, or the blocks that differ, of BlockDifference.as_json), behind (None, or of
        Left.as_json), against_unseen (like unseen, for the other stream).
        """
        against = None if self.against is None else [block.as_json() for block in self.against]
        return {
            "valid": True,
            "error": None,
            "described": self.described,
            "unchecked": self.unchecked,
            "unseen": [pages.as_json() for pages in self.missing],
            "ram": [comparison.as_json() for comparison in self.ram],
            "against": against,
            "behind": None if self.behind is None else self.behind.as_json(),
            "against_unseen": [pages.as_json() for pages in self.missing_there],
        }


def invalid_as_json(error: StreamError) -> dict[str, Any]:
    """Return the dictionary of Report.as_json for an invalid stream; the error has the keys offset,
    section, message.
    """
    found = {"offset": error.offset, "section": error.section, "message": error.message}
    nothing = Report(described=False, unchecked=[], missing=[], ram=[])
    return {**nothing.as_json(), "valid": False, "error": found}


def compare_file(image: BlockFile, block: str, file: BinaryIO) -> Comparison:
    """Compare a block with a file of the same length. Raises RebuildError."""
    size = file.seek(0, os.SEEK_END)
    if size != image.length:
        raise RebuildError(f"{file.name} has {size} bytes, RAM block {block} has {image.length}")
    count = 0
    first: list[int] = []
    for start, mask in differing(image.fd, file.fileno(), image.length, image.page_size):
        count += int(mask.sum())
        missing = FIRST_PAGES - len(first)
        first += (start + mask.nonzero()[0][:missing] * image.page_size).tolist()
    return Comparison(block, file.name, count, tuple(first))


def verify(
    stream: BinaryIO,
    files: dict[str, str],
    other: RebuiltGuest | None = None,
    how: How = USUALLY,
    channels: Channels | None = None,
) -> Report:
    """Read the whole stream, compare blocks with `files` by name, and all RAM with another
    stream's.

    `how` and `channels` are those of `read_events`. Raises StreamError if the stream is not valid,
    RebuildError if a file does not fit, OSError if a file cannot be read.
    """
    with ExitStack() as stack:
        # Open the files first, so that a missing one is reported before a long stream is read.
        opened = {block: stack.enter_context(open(path, "rb")) for block, path in files.items()}
        guest = rebuild(
            read_events(stream, how, channels), stack, opened if other is None else None
        )
        guest.check_blocks(opened)
        undescribed = check_devices(guest)
        ram = [compare_file(guest.images[block], block, file) for block, file in opened.items()]
        against = None if other is None else [*compare_blocks(guest, other)]
        described = guest.description is not None
        told = unchecked(guest, undescribed)
        missing = guest.arrivals.missing()
        there = [] if other is None else other.arrivals.missing()
        return Report(described, told, missing, ram, against, guest.behind, there)


def unchecked(guest: RebuiltGuest, undescribed: list[str]) -> list[str]:
    """Return a line for each part that could not be checked, because the stream has too few facts
    on it.
    """
    found = [absent_message(name) for name in guest.blocks if name in guest.absent]
    found += [f"section {name}: nobody knows what is in it" for name in sorted(guest.unread)]
    if guest.unsplit:
        found.append(f"{guest.unsplit} bytes of devices: nothing separates them")
    if guest.description is None and guest.devices:
        found.append("devices: the stream has no description of them")
    elif undescribed:
        found.append(f"devices that the description leaves out: {', '.join(undescribed)}")
    if guest.behind is not None:
        found.append(guest.behind.describe())
    return found


def check_devices(guest: RebuiltGuest) -> list[str]:
    """Check the devices, and return those that the description does not list, as `name#instance`.

    Raises StreamError if a device's bytes do not match the description.
    """
    decoder = Decoder(guest.description)
    if guest.configuration is not None:
        decoder.decode_configuration(guest.configuration)
    return [
        f"{section.name}#{section.instance_id}"
        for section in guest.devices
        if any(field.type == "undescribed" for field in decoder.decode(section, values=False))
    ]
