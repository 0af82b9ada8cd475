"""Decide where the device sections after RAM end, and where the stream does.

No section carries its length, and a guest can write into its devices bytes that look like a footer,
a section, the end of the stream, or a description. So events are returned as they arrive only up to
the first FULL section or EOF after RAM. All bytes from there on are kept, and then decided at once.

**With a description.** An end is accepted only if a description confirms it: it lists every section
that was read, in order, with its name, instance id and version, and each one's header and footer
are exactly where the described lengths put them, from the first kept byte up to the EOF before the
description. If several descriptions fit, the last one in the input is right: a guest can forge one
only inside its own devices, and the true description follows all of them. So in an input that holds
the whole stream, a guest decides nothing, whatever it writes.

**Bytes after the stream** are allowed in files: volumes are larger than the streams on them, and
hold zeros or old data. A guest could move the end only if it wrote these bytes, too (for example,
if it has a disk that lies after its own state in the same file), and put a footer and a description
there in which one of its devices extends up to them. If a stream was cut within a device, a forged
end before the cut cannot be distinguished from the true one: the rest of that device then counts as
bytes after the stream, and their number is reported.

**On a connection** an end is accepted only if its description fits and ends with the last byte that
has arrived (`whole`), and nothing follows: see `receiver.end_of_stream` for how long that is
watched. A source that waits for an answer sends nothing after the true end, and continues after a
forged one. The remaining risk is a source, or a link, that stalls exactly after a forged end for
all of that time.

**Without a description** (`undescribed`) sections are separated only if there is one way to do so,
and only zeros follow the end. That is certain for an input that is known to be complete. It is not
for a connection that stays open: nothing there says that the stream has ended. If other bytes
follow, or sections may have no footers, the end is a guess (`Ended.guessed`): it is the last
possible one, after which there is no data of the guest, and a receiver refuses it.

**Sections before RAM** ("early") are read as they arrive, by their footers. The description has to
confirm their lengths as well; if a later one in the input contradicts them, no other is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .. import events
from ..errors import StreamError
from ..wire.kept import Kept
from . import diagnosis
from .candidates import Candidate, LastCandidate, candidates, wrong_page_size
from .description import Described
from .following import CommandAt, Follower, MismatchError, Part, Search, read_commands, read_section

if TYPE_CHECKING:
    from .undescribed import Apart

SEARCH = 1 << 30
"""Limit for the bytes searched for the ends of sections that are not described in full."""


@dataclass(frozen=True)
class Ended:
    """The events of the kept bytes up to `end`, the position in them where the stream ends.

    `guessed`: the stream may end earlier, and nothing says whether it does.
    """

    events: list[events.Event]
    end: int
    guessed: bool = False


@dataclass
class Ending:
    """The search for the end of the stream in the bytes `kept`, which begin at `offset` in it.

    `early`: the device sections before them; `ids`: section ids of all sections before them.
    `footers`: whether sections have footers, None if not known. `page_size`: bytes of the pages
    read so far.
    """

    kept: Kept
    offset: int
    early: Sequence[events.DeviceSection]
    ids: frozenset[int]
    page_size: int
    footers: bool | None = True
    _last: LastCandidate = field(init=False)

    def __post_init__(self) -> None:
        self._last = LastCandidate(self.kept)

    @property
    def _footers(self) -> bool:
        return self.footers is not False

    def whole(self) -> bool:
        """Return whether a description confirms that the stream ends with the last byte kept."""
        return self.confirmed_end() is not None

    def confirmed_end(self) -> int | None:
        """Return the position behind the EOF before that description; None without one."""
        candidate = self._last.find()
        if candidate is None:
            return None
        try:
            self._follow(candidate, Search(SEARCH))
        except MismatchError:
            return None
        return candidate.position + 1

    def bare(self) -> bool:
        """Return whether the kept bytes look like a whole stream that has no description."""
        return self.kept.size > 0 and self._undescribed() is not None

    def resolve(self) -> Ended:
        """Return the events, now that the input has ended. Raises StreamError."""
        search, wrong = Search(SEARCH), diagnosis.Worst()
        for candidate in candidates(self.kept):
            try:
                parts = self._follow(candidate, search)
            except MismatchError as error:
                wrong.note(candidate, error)
                continue
            if wrong.early is not None:
                raise self._placed(wrong.early)
            return self._described(candidate, parts)
        found = None
        if self._footers:
            found = self._undescribed() or self._guessed(wrong.last)
        if found is None and not self.footers:
            found = self._without_footers(wrong.last)
        if found is None:
            missing = diagnosis.undescribed(self.kept, footers=self.footers is True)
            raise self._placed(wrong.explained(self.kept) or missing)
        return found

    def _follow(self, candidate: Candidate, search: Search) -> list[Part]:
        """Return the parts up to a candidate. Raises MismatchError."""
        if candidate.error is not None:
            message = f"a device is described without sense: {candidate.error}"
            raise MismatchError(message, candidate.position)
        size = candidate.json.get("page_size", self.page_size)
        if size != self.page_size:
            message = wrong_page_size(size, self.page_size)
            raise MismatchError(message, candidate.position)
        listed = self._behind_ram(candidate)
        follower = Follower(self.kept, candidate, listed, self.ids, search, self._footers)
        return follower.run()

    def _behind_ram(self, candidate: Candidate) -> list[Described]:
        """Return the described devices that follow RAM.

        Raises EarlyMismatchError if one before RAM is not as long as described.
        """
        early = {(section.name, section.instance_id): section for section in self.early}
        listed = []
        for one in candidate.devices:
            section = early.pop((one.name, one.instance_id), None)
            if section is None:
                listed.append(one)
            elif one.length.exact and one.length.size != len(section.payload):
                message = f"the section has {len(section.payload)} bytes, its description"
                where = section.payload_offset - self.offset
                raise diagnosis.EarlyMismatchError(
                    f"{message} {one.length.size}", where, section.name
                )
        return listed

    def _described(self, candidate: Candidate, parts: Sequence[Part]) -> Ended:
        offset = self.offset + candidate.position
        description = events.Description(offset + 1, candidate.text, candidate.json)
        found = [*map(self._event, parts), events.EndOfStream(offset), description]
        return Ended(found, candidate.end)

    def _undescribed(self) -> Ended | None:
        # Nearly every stream has a description, so the import is deferred.
        from .undescribed import take_apart  # noqa: PLC0415

        apart = take_apart(self.kept, self.ids)
        return None if apart is None else self._apart(apart)

    def _guessed(self, last: Candidate | None) -> Ended | None:
        """Return the last possible end that any bytes may follow; None if there is none.

        `last`: the last description in the input, none of which fits.
        """
        from .undescribed import last_zero, take_apart  # noqa: PLC0415

        if last is not None and self._is_its_own(last):
            return None
        apart = take_apart(self.kept, self.ids, anything_behind=True)
        if apart is None or diagnosis.is_description_begun(self.kept, apart.eof):
            return None
        if self.footers is None:
            # Bytes that look like footers may have been written by the guest.
            apart = last_zero(self.kept) or apart
        return replace(self._apart(apart), guessed=True)

    def _is_its_own(self, last: Candidate) -> bool:
        """Return whether a description is this stream's, by the first device after RAM.

        Other descriptions are left over from older streams in the same place.
        """
        _, at = read_commands(self.kept, 0)
        first = read_section(self.kept, at)
        listed = {(one.name, one.instance_id) for one in last.devices}
        return first is None or (first.name, first.instance_id) in listed

    def _apart(self, apart: Apart) -> Ended:
        found: list[events.Event] = []
        if apart.parts is not None:
            found += map(self._event, apart.parts)
        elif apart.eof:
            found.append(events.UnsplitDevices(self.offset, self.kept.part(0, apart.eof)))
        return Ended([*found, events.EndOfStream(self.offset + apart.eof)], apart.eof + 1)

    def _without_footers(self, last: Candidate | None) -> Ended | None:
        """Return all devices as one, up to the description at the very end or the last byte."""
        eof = self.kept.size - 1
        told: list[events.Event] = []
        if last is not None and last.error is None and last.end == self.kept.size:
            eof = last.position
            told = [events.Description(self.offset + eof + 1, last.text, last.json)]
        elif self.kept.read(eof, 1) != b"\0":
            return None
        found: list[events.Event] = [events.EndOfStream(self.offset + eof), *told]
        if eof:
            found.insert(0, events.UnsplitDevices(self.offset, self.kept.part(0, eof)))
        return Ended(found, last.end if told and last is not None else eof + 1)

    def _event(self, part: Part) -> events.Event:
        start = self.offset + part.start
        if isinstance(part, CommandAt):
            return events.Command(start, part.command, part.data)
        return events.DeviceSection(
            offset=start,
            section_id=part.section_id,
            name=part.name,
            instance_id=part.instance_id,
            version=part.version,
            payload=self.kept.part(part.payload, part.size),
            payload_offset=self.offset + part.payload,
            footer=self._footers,
        )

    def _placed(self, error: MismatchError) -> StreamError:
        offset = self.offset + error.position
        return StreamError(error.message, offset=offset, section=error.section)
