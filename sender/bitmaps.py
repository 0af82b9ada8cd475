"""Send the dirty bitmaps of a guest's disks on, as they have arrived, in a section of their own."""

from __future__ import annotations

from ..guest.parts import DeviceState
from ..protocol.section_events import BitmapChunk
from ..protocol.sections.dirty_bitmap import write_chunk
from ..protocol.wire.dirty_bitmap import SECTION_NAME, SECTION_VERSION, BitmapFlag
from ..protocol.wire.marks import SectionType
from ..transport.settings import TrackerKind
from . import stream
from .sources import StartRound


class BitmapSource:
    """The dirty bitmaps that a guest keeps: they do not change, so rounds have nothing to send."""

    total = scanned = found = 0

    def __init__(self) -> None:
        self._section_id = 0
        self._bitmaps = b""

    def pending(self) -> int:
        """Return 0: nothing changes."""
        return 0

    def prepare(self, tracker: TrackerKind) -> None:
        """Do nothing: nothing changes."""

    def start(self, state: DeviceState) -> bytes:
        """Return the piece that begins the section, if there are any bitmaps."""
        self._bitmaps, self._section_id = state.bitmaps, stream.free_ids(state)[1]
        return self._piece(SectionType.START, b"")

    def iterate(self, command: StartRound) -> None:
        """Do nothing: the bitmaps are sent at the end, as from a QEMU."""

    def complete(self) -> bytes:
        """Return the bitmaps, in the piece that ends the section."""
        return self._piece(SectionType.END, self._bitmaps)

    def _piece(self, kind: SectionType, chunks: bytes) -> bytes:
        if not self._bitmaps:
            return b""
        end = write_chunk(BitmapChunk(0, BitmapFlag.EOS))
        head, tail = stream.around(kind, self._section_id, SECTION_NAME, SECTION_VERSION)
        return head + chunks + end + tail

    def close(self) -> None:
        """Do nothing: nothing was shared."""
