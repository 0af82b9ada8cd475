"""Find out from a stream whether its guest ran at the source."""

from __future__ import annotations

from contextlib import suppress

from ...guest.parts import DeviceSection, DeviceState
from ...guest.qemu.global_state import says_stopped
from ...protocol import events
from ...protocol.errors import StreamError
from ...protocol.reader import StreamReader


class RunStateReader:
    """A reader beside the one that loads the stream; it never holds that one up."""

    def __init__(self) -> None:
        self._reader: StreamReader | None = StreamReader(mixed=True)

    def feed(self, data: memoryview) -> None:
        """Take the next bytes."""
        if self._reader is None:
            return
        try:
            self._reader.feed(data)
        except StreamError:
            # QEMU judges the stream, not this reader.
            self._reader = None

    @property
    def stopped(self) -> bool:
        """Return whether the guest was stopped at its source; False if the stream does not say."""
        reader, self._reader = self._reader, None
        if reader is None:
            return False
        with suppress(StreamError):
            sections = tuple(
                DeviceSection(
                    event.section_id, event.name, event.instance_id, event.version, event.payload
                )
                for event in reader.close()
                if isinstance(event, events.DeviceSection)
            )
            return says_stopped(DeviceState((), sections, None, 0))
        return False
