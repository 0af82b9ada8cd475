"""Read commands, and apply those that say something about RAM or about the parts that follow."""

from __future__ import annotations

from .. import events
from ..devices.section_ends import Known
from ..errors import StreamError
from ..wire import stream
from ..wire.commands import read_command
from ..wire.cursor import Cursor
from ..wire.marks import CommandType
from .configuration import checked_page_size
from .ram_reader import RamReader


class CommandReader:
    """Reader of commands, which knows whether the stream is in a package of a postcopy.

    `known`: the parts of the stream so far, which note the package, too.
    """

    def __init__(self, ram: RamReader, known: Known) -> None:
        self._ram = ram
        self._known = known
        self._package_end: int | None = None

    @property
    def in_package(self) -> bool:
        """Return whether the next part belongs to a package."""
        return self._package_end is not None

    def leave_package(self, offset: int) -> None:
        """Leave the package if it ends at or before `offset`, where a part begins.

        Raises StreamError if it ended within the part before.
        """
        end = self._package_end
        if end is None or offset < end:
            return
        if offset > end:
            message = f"the package before ended at {end:#x}, within a section"
            raise StreamError(message, offset=offset)
        self._package_end, self._known.in_package = None, False

    def read(self, cursor: Cursor) -> events.Command:
        """Read a command and apply it. Raises StreamError."""
        start = cursor.offset
        command = cursor.take(stream.Command)
        said = read_command(command.command, command.data, start)
        if command.command == CommandType.POSTCOPY_ADVISE and said is not None:
            blocks = self._ram.block_list
            blocks.postcopy = True
            if not blocks.page_size_said:
                blocks.page_size = checked_page_size(said.page_size, start)
                blocks.page_size_said = True
        elif command.command == CommandType.POSTCOPY_RAM_DISCARD:
            for lost in said.ranges:
                name = said.block.decode(errors="replace")
                self._ram.check_inside(name, lost.start, lost.length, start)
        elif command.command == CommandType.PACKAGED:
            if self._package_end is not None:
                raise StreamError("a package within a package", offset=start)
            self._package_end = cursor.offset + said.length
            self._known.in_package = True
        return events.Command(start, command.command, command.data)
