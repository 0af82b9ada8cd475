"""Collect what a stream holds besides pages; `sender.stream` is the counterpart."""

from __future__ import annotations

import json
from dataclasses import replace

from ..guest.directory_rules import MAX_BITMAPS
from ..guest.errors import MigrationError
from ..guest.parts import BlockLayout, DeviceSection, DeviceState, Machine
from ..protocol import events
from ..protocol.devices.description import with_capabilities
from ..protocol.reading.configuration import MAPPED_RAM
from ..protocol.section_events import BitmapChunk
from ..protocol.sections.dirty_bitmap import write_chunk
from ..protocol.wire.dirty_bitmap import BitmapFlag
from ..protocol.wire.kept import Part, Payload
from ..protocol.wire.marks import DEFAULT_PAGE_SIZE
from ..transport.spill import SentFile, SpillFile


class Incoming:
    """Everything in the stream so far except the pages."""

    def __init__(self) -> None:
        self.configuration: events.Configuration | None = None
        self.ram_section_id = 0
        self.page_size = DEFAULT_PAGE_SIZE
        self.early: list[DeviceSection] = []
        self.sections: list[DeviceSection] = []
        self.description: bytes | None = None
        self.bitmaps = bytearray()
        """Chunks of the dirty bitmaps of disks, each with its names."""
        self.blocks: events.RamBlocks | None = None
        self.files: list[SpillFile] = []
        """The files of large payloads, in the order in which they arrived."""

    def take(self, event: events.Event) -> None:
        """Record one event of the stream."""
        if isinstance(event, events.Configuration):
            self.configuration = event
        elif isinstance(event, events.RamSection):
            self.ram_section_id = event.section_id
        elif isinstance(event, events.RamBlocks):
            self.blocks = event
        elif isinstance(event, events.DeviceSection):
            section = DeviceSection(
                section_id=event.section_id,
                name=event.name,
                instance_id=event.instance_id,
                version=event.version,
                payload=self._payload(event.payload),
            )
            (self.sections if self.blocks else self.early).append(section)
        elif isinstance(event, events.Description):
            self.description = event.text
        elif isinstance(event, BitmapChunk):
            self._take_bitmap(event)

    def _take_bitmap(self, chunk: BitmapChunk) -> None:
        """Keep a chunk with its names, even if it left them out. Raises MigrationError."""
        flags = chunk.flags & ~BitmapFlag.EOS
        if not flags:
            return
        flags |= BitmapFlag.DEVICE_NAME | BitmapFlag.BITMAP_NAME
        self.bitmaps += write_chunk(replace(chunk, flags=flags, flags_size=1))
        if len(self.bitmaps) > MAX_BITMAPS:
            raise MigrationError(f"more than {MAX_BITMAPS} bytes of dirty bitmaps")

    def _payload(self, payload: Payload) -> Payload:
        if isinstance(payload, bytes):
            return payload
        assert isinstance(payload.kept, SentFile)
        return Part(self.files[payload.kept.number], payload.start, payload.size)

    def machine(self) -> Machine:
        """Return the machine that the configuration names.

        Raises MigrationError if the stream has no configuration section.
        """
        if self.configuration is None:
            raise MigrationError("the stream has no configuration section, so names no machine")
        page_size = self.configuration.page_size
        return Machine(
            name=self.configuration.machine,
            page_size=page_size or self.page_size,
            capabilities=self._capabilities(),
            uuid=self.configuration.uuid,
            page_bits_sent=page_size is not None,
        )

    def _capabilities(self) -> tuple[str, ...] | None:
        """Return the capabilities without that of the file, which the guest does not keep."""
        assert self.configuration is not None
        found = self.configuration.capabilities
        if found is None or MAPPED_RAM not in found:
            return found
        return tuple(name for name in found if name != MAPPED_RAM) or None

    def _described(self) -> bytes | None:
        """Return the description of a stream with the capabilities that the guest keeps.

        Raises MigrationError.
        """
        text, configuration = self.description, self.configuration
        if text is None or configuration is None:
            return text
        if MAPPED_RAM not in (configuration.capabilities or ()):
            return text
        try:
            changed = with_capabilities(json.loads(text), self._capabilities() or ())
            return json.dumps(changed).encode()
        except (ValueError, RecursionError) as error:
            raise MigrationError(f"the description makes no sense: {error}") from error

    def layout(self) -> list[BlockLayout]:
        """Return the RAM blocks that the stream brings."""
        assert self.blocks is not None
        return [
            BlockLayout(name=block.name, length=block.length, page_size=self.machine().page_size)
            for block in self.blocks.blocks
        ]

    def device_state(self) -> DeviceState:
        """Return everything that is loaded after RAM."""
        return DeviceState(
            early=tuple(self.early),
            sections=tuple(self.sections),
            description=self._described(),
            ram_section_id=self.ram_section_id,
            bitmaps=bytes(self.bitmaps),
        )
