"""Follow the device sections of a stream as its description lists them.

The description gives names, instance ids, versions and lengths; each section's header and footer
must be at the resulting positions, and the stream must end where the description begins. QEMU
describes some arrays by their first element only: if such a section does not end as described, it
ends at the one place from which all the rest is as described.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ..wire import stream
from ..wire.cursor import decode_name
from ..wire.kept import Kept
from ..wire.marks import MAX_DEVICE_VERSION, MAX_SECTION_ID, CommandType, SectionType
from .candidates import Candidate
from .description import Described

_HEADER_SIZE = 1 + 4 + 1 + 4 + 4
"""Bytes of the header of a device section, besides its name."""
_MAX_HEADER = _HEADER_SIZE + 255
"""Limit for the header of a device section, in bytes."""

_COMMAND_HEADER = 5
_STEP = 1 << 20
MAX_COMMANDS = 64
"""Limit for the commands between two device sections."""
_MAX_CHOICES = 256
"""Limit for the ends of sections that are tried besides the described ones."""


@dataclass(frozen=True)
class Section:
    """A device section in the kept bytes: its header is at `start`, its payload at `payload`."""

    start: int
    section_id: int
    name: str
    instance_id: int
    version: int
    payload: int
    size: int = 0

    @property
    def end(self) -> int:
        """Return the position after the payload."""
        return self.payload + self.size


@dataclass(frozen=True)
class CommandAt:
    """A command between device sections, at `start` of the kept bytes."""

    start: int
    command: int
    data: bytes


Part: TypeAlias = Section | CommandAt


class MismatchError(Exception):
    """The sections differ from the description; one line, and a position in the kept bytes.

    `too_long`: the section that has no footer at its described end, with the described size.
    """

    def __init__(
        self,
        message: str,
        position: int,
        section: str | None = None,
        too_long: Section | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.section = section
        self.too_long = too_long


def read_section(kept: Kept, position: int) -> Section | None:
    """Return the header of the device section at `position`, without its size, or None."""
    raw = kept.read(position, _MAX_HEADER)
    try:
        header = stream.SectionHeader.parse(raw)
    except stream.DeclarationError:
        return None
    name = decode_name(header.name)
    if (
        header.type != SectionType.FULL
        or name is None
        or header.section_id >= MAX_SECTION_ID
        or header.version >= MAX_DEVICE_VERSION
    ):
        return None
    payload = position + _HEADER_SIZE + len(header.name)
    return Section(position, header.section_id, name, header.instance_id, header.version, payload)


def read_command(kept: Kept, position: int) -> CommandAt | None:
    """Return the command at `position`; None if there is none."""
    head = kept.read(position, _COMMAND_HEADER)
    if len(head) < _COMMAND_HEADER or head[0] != SectionType.COMMAND:
        return None
    command, size = int.from_bytes(head[1:3], "big"), int.from_bytes(head[3:], "big")
    data = kept.read(position + _COMMAND_HEADER, size)
    if command not in list(CommandType) or len(data) < size:
        return None
    return CommandAt(position, command, data)


def read_commands(kept: Kept, position: int) -> tuple[list[CommandAt], int]:
    """Return the commands from `position` on, at most MAX_COMMANDS, and the position after them."""
    found: list[CommandAt] = []
    while len(found) < MAX_COMMANDS and (command := read_command(kept, position)) is not None:
        found.append(command)
        position += _COMMAND_HEADER + len(command.data)
    return found, position


def behind_footer(kept: Kept, position: int, section_id: int) -> int | None:
    """Return the position after the section's footer at `position`; None if there is no footer."""
    footer = kept.read(position, stream.FOOTER_SIZE)
    return position + stream.FOOTER_SIZE if footer == stream.section_footer(section_id) else None


@dataclass
class _Choice:
    """A section that may end at several places.

    `before`: number of parts found before it; `ends`: the places not yet tried.
    """

    before: int
    section: Section
    index: int
    ends: Iterator[int]


@dataclass
class Search:
    """Limit for the bytes searched for footers, so that a forged stream takes limited time."""

    left: int

    def allows(self, count: int) -> bool:
        """Subtract `count` bytes from the limit, and return whether they were allowed."""
        self.left -= count
        return self.left >= 0


@dataclass
class Follower:
    """A reader of the devices `listed` by a candidate, from the first kept byte on.

    `ids`: section ids that occurred before and may not occur again. `footers`: whether sections
    have footers; without them, every length must be as described.
    """

    kept: Kept
    candidate: Candidate
    listed: Sequence[Described]
    ids: frozenset[int]
    search: Search
    footers: bool = True
    _parts: list[Part] = field(default_factory=list)
    _choices: list[_Choice] = field(default_factory=list)
    _tried: int = 0

    def run(self) -> list[Part]:
        """Return the sections and commands up to the candidate. Raises MismatchError."""
        found: list[Part] | None = None
        first: MismatchError | None = None
        at, index = 0, 0
        while True:
            try:
                self._follow(at, index)
            except MismatchError as error:
                first = first or error
            else:
                if found is not None:
                    message = "its sections may end at several places: it says too little of them"
                    raise MismatchError(message, 0)
                found = [*self._parts]
                if self._as_described():
                    return found
            following = self._next_choice()
            if following is None:
                break
            at, index = following
        if found is not None:
            return found
        assert first is not None
        raise first

    def _as_described(self) -> bool:
        sections = [part for part in self._parts if isinstance(part, Section)]
        pairs = zip(sections, self.listed, strict=True)
        return all(section.size == one.length.size for section, one in pairs)

    def _follow(self, at: int, index: int) -> None:
        while True:
            commands, at = read_commands(self.kept, at)
            self._parts += commands
            if index == len(self.listed):
                break
            section = self._header(at, index)
            described = self.listed[index]
            index += 1
            if self.footers and not described.length.exact:
                ends = self._ends(section, described, index)
                self._choices.append(_Choice(len(self._parts), section, index, ends))
            at = self._take(section, section.payload + described.length.size)
        if at != self.candidate.position:
            message = "the description lists no device that begins here, and it is not the end"
            raise MismatchError(message, at)
        self._check_ids()

    def _check_ids(self) -> None:
        ids = set(self.ids)
        for part in self._parts:
            if isinstance(part, Section):
                if part.section_id in ids:
                    message = f"section id {part.section_id} occurs twice"
                    raise MismatchError(message, part.start, part.name)
                ids.add(part.section_id)

    def _header(self, at: int, index: int) -> Section:
        described = self.listed[index]
        section = read_section(self.kept, at)
        where = f"{described.name}#{described.instance_id}"
        if section is None or at >= self.candidate.position:
            raise MismatchError(f"no section {where} here, which the description lists", at)
        if (section.name, section.instance_id) != (described.name, described.instance_id):
            message = f"the section is described as {where}"
            raise MismatchError(message, at, section.name)
        if described.version not in (None, section.version):
            message = f"the section has version {section.version}, its description"
            raise MismatchError(f"{message} {described.version}", at, section.name)
        return section

    def _take(self, section: Section, end: int) -> int:
        """Add the section with this end, and return the position after it.

        Raises MismatchError if no footer follows the end.
        """
        section = replace(section, size=end - section.payload)
        behind: int | None = end
        if self.footers:
            behind = behind_footer(self.kept, end, section.section_id)
        if behind is None or behind > self.candidate.position:
            message = f"no footer behind the {section.size} bytes that are described"
            raise MismatchError(message, section.payload, section.name, section)
        self._parts.append(section)
        return behind

    def _next_choice(self) -> tuple[int, int] | None:
        while self._choices:
            choice = self._choices[-1]
            for end in choice.ends:
                self._tried += 1
                if self._tried > _MAX_CHOICES:
                    return None
                del self._parts[choice.before :]
                return self._take(choice.section, end), choice.index
            self._choices.pop()
        return None

    def _ends(self, section: Section, described: Described, following: int) -> Iterator[int]:
        """Yield the possible ends of the section other than the described one."""
        footer = stream.section_footer(section.section_id)
        usual = section.payload + described.length.size
        if following == len(self.listed):
            end = self.candidate.position - stream.FOOTER_SIZE
            if end != usual and end >= section.payload and self.kept.read(end, 5) == footer:
                yield end
            return
        described = self.listed[following]
        name = stream.Str8.build(described.name.encode())
        instance = described.instance_id.to_bytes(4, "big")
        header = b"\x04....%s%s" % (re.escape(name), re.escape(instance))
        pattern = re.compile(re.escape(footer) + b"(?=%s|\x08)" % header, re.DOTALL)
        at, overlap = section.payload, stream.FOOTER_SIZE + _MAX_HEADER
        while at < self.candidate.position and self.search.allows(_STEP):
            for match in pattern.finditer(self.kept.read(at, _STEP + overlap)):
                if match.start() < _STEP and at + match.start() != usual:
                    yield at + match.start()
            at += _STEP
