"""Read the footers of sections, and find out whether a stream has footers at all."""

from __future__ import annotations

from .. import events
from ..errors import StreamError
from ..wire import stream
from ..wire.cursor import Cursor
from ..wire.marks import SectionType

PARTS = frozenset(
    {
        SectionType.EOF,
        SectionType.START,
        SectionType.PART,
        SectionType.END,
        SectionType.FULL,
        SectionType.COMMAND,
    }
)
"""The bytes with which a part of a stream begins."""


class FooterReader:
    """Reader of footers, for one stream."""

    def __init__(self) -> None:
        self.present: bool | None = None
        """True if sections end with footers, False if not, None if that is not known yet."""

    @property
    def likely(self) -> bool:
        """Return whether sections end with footers, or True if that is not known yet."""
        return self.present is not False

    def read(self, cursor: Cursor, section_id: int) -> list[events.Event]:
        """Read the footer of a section, or note that the stream has none. Raises StreamError."""
        start, kind = cursor.offset, cursor.peek()
        if kind == SectionType.FOOTER and self.likely:
            footer = cursor.take(stream.SectionFooter)
            self.present = True
            if footer.section_id != section_id:
                message = f"footer of section id {footer.section_id}, not {section_id}"
                raise StreamError(message, offset=start)
            return [events.Footer(start, section_id)]
        if self.present or kind not in PARTS:
            raise StreamError(f"byte {kind:#04x} in place of a section's footer", offset=start)
        noticed, self.present = self.present is None, False
        return [events.NoFooters(start)] if noticed else []
