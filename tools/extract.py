"""A guest out of a stream, as files: RAM (raw images, an ELF core or LiME), disks, devices' state.

Memory use does not grow with the guest: the output itself is what pages are changed in.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..guest.file_names import file_name
from ..protocol import events
from ..protocol.block_section import DiskBlock
from ..protocol.errors import StreamError
from ..protocol.memory_image import LIME_HEADER_SIZE, Region, elf_header, lime_header
from .block_file import BlockFile, check_run
from .disks import Disk, DiskFiles
from .failure import CommandError
from .main_ram import elf_machine, main_block, regions
from .rebuild import absent_message
from .staged import Staged
from .stream_events import read_events

FORMATS = ("raw", "elf", "lime")


class ExtractError(CommandError):
    """What is asked for cannot be had from this stream; one line."""


@dataclass(frozen=True)
class Wanted:
    """`block`: by name; None: the guest's memory. `everything`: all blocks, into a folder.

    `out`: of the RAM; `devices`: a folder for the devices' state; `disks`: one for disks.
    `max_below_4g`: see main_ram. `partial`: keep what there is where the stream is damaged.
    `page_size`: as in `read_events`.
    """

    out: Path | None
    block: str | None = None
    everything: bool = False
    format: str = "raw"
    devices: Path | None = None
    max_below_4g: int | None = None
    partial: bool = False
    disks: Path | None = None
    page_size: int = 4096


@dataclass(frozen=True)
class Extracted:
    """A RAM block that stands in `file`; `regions`: where the guest sees it, None: not known."""

    block: str
    file: str
    length: int
    regions: list[Region] | None

    def as_json(self) -> dict[str, Any]:
        """Keys: block, file, length, regions (None, or objects: start, length, address)."""
        return asdict(self)


@dataclass
class Report:
    """What was extracted; `absent`: names of blocks that the stream does not bring."""

    blocks: list[Extracted] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    devices: int = 0
    disks: list[Disk] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Keys: blocks (see Extracted), absent (names), devices (how many sections), disks (see
        Disk)."""
        return {
            "blocks": [block.as_json() for block in self.blocks],
            "absent": self.absent,
            "devices": self.devices,
            "disks": [disk.as_json() for disk in self.disks],
        }


def extract(stream: BinaryIO, wanted: Wanted) -> Report:
    """Read all of the stream. Raises StreamError, ExtractError, LayoutError, OSError.

    Whatever is raised, no output is there; but with `partial`, after a StreamError it is.
    """
    with ExitStack() as stack, Staged() as staged:
        work = _Extraction(wanted, staged, stack)
        try:
            for event in read_events(stream, wanted.page_size):
                work.take(event)
        except StreamError:
            if wanted.partial and (work.report.blocks or work.report.disks):
                staged.keep()
            raise
        report = work.finish()
        staged.keep()
        return report


class _Extraction:
    """Takes the events of one stream."""

    def __init__(self, wanted: Wanted, staged: Staged, stack: ExitStack) -> None:
        self._wanted = wanted
        self._staged = staged
        self._stack = stack
        self._machine = ""
        self._page_size = wanted.page_size
        self._files: dict[str, BlockFile] = {}
        self._paths: dict[str, Path] = {}
        self._devices: list[dict[str, Any]] = []
        self._folder = None if wanted.devices is None else staged.folder(wanted.devices)
        self._disks: DiskFiles | None = None
        if wanted.disks is not None:
            self._disks = DiskFiles(staged.folder(wanted.disks), wanted.disks, stack)
        self._absent: set[str] = set()
        self._listed = False
        self.report = Report()

    def take(self, event: events.Event) -> None:
        """The next event."""
        if isinstance(event, events.Configuration):
            self._machine = event.machine
        elif isinstance(event, events.RamBlocks):
            self._page_size = event.page_size
            self._absent = {block.name for block in event.blocks if block.may_be_absent}
            self._open(event.blocks)
        elif isinstance(event, (events.PageRun, events.EncodedRun)):
            self._pages(event)
        elif isinstance(event, DiskBlock) and self._disks is not None:
            self._disks.take(event)
            self.report.disks = self._disks.disks
        elif isinstance(event, events.DeviceSection):
            self._device(event)
        elif isinstance(event, events.Description) and self._folder is not None:
            (self._folder / "description.json").write_bytes(event.text)

    def _pages(self, run: events.PageRun | events.EncodedRun) -> None:
        self._absent.discard(run.block.name)
        file = self._files.get(run.block.name)
        if file is not None:
            file.take(run)
        else:
            check_run(run, self._page_size)

    def finish(self) -> Report:
        """The stream has ended."""
        if not self._listed and self._wanted.out is not None:
            raise ExtractError("the stream has no RAM")
        if self._disks is not None and not self.report.disks:
            raise ExtractError("the stream has no disks")
        self._leave_out_absent()
        if self._folder is not None:
            text = json.dumps(self._devices, indent=1)
            (self._folder / "devices.json").write_text(text)
        return self.report

    def _leave_out_absent(self) -> None:
        """Shared blocks that did not come have no file."""
        absent = [block for block in self.report.blocks if block.block in self._absent]
        if absent and not self._wanted.everything:
            raise ExtractError(absent_message(absent[0].block))
        for block in absent:
            self._paths[block.block].unlink()
            self.report.blocks.remove(block)
            self.report.absent.append(block.block)

    def _open(self, blocks: tuple[events.RamBlock, ...]) -> None:
        """The outputs for all blocks that are wanted."""
        self._listed = True
        out, wanted = self._wanted.out, self._wanted
        if out is None:
            return
        if wanted.everything:
            folder = self._staged.folder(out)
            for number, block in enumerate(blocks):
                path = folder / file_name(number, block.name)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._paths[block.name] = path
                self._add(block, fd, out / path.name)
            return
        block = self._chosen(blocks)
        fd = self._staged.file(out)
        self._add(block, fd, out, *self._headers(block))

    def _chosen(self, blocks: tuple[events.RamBlock, ...]) -> events.RamBlock:
        name = self._wanted.block
        if name is None:
            return main_block(blocks, alone=self._wanted.format != "raw")
        for block in blocks:
            if block.name == name:
                return block
        names = ", ".join(block.name for block in blocks)
        raise ExtractError(f"no RAM block {name!r} in the stream; it has {names}")

    def _headers(
        self, block: events.RamBlock
    ) -> tuple[list[Region] | None, list[tuple[int, bytes]], int]:
        """Where the guest sees the block; headers and their places in the output; the first
        byte of RAM there."""
        if self._wanted.format == "raw":
            return None, [], 0
        found = regions(self._machine, block, self._wanted.max_below_4g)
        if self._wanted.format == "elf":
            head = elf_header(found, elf_machine(self._machine))
            return found, [(0, head)], len(head)
        places = [region.start + i * LIME_HEADER_SIZE for i, region in enumerate(found)]
        headers = [lime_header(region) for region in found]
        return found, list(zip(places, headers, strict=True)), LIME_HEADER_SIZE

    def _add(
        self,
        block: events.RamBlock,
        fd: int,
        path: Path,
        found: list[Region] | None = None,
        headers: list[tuple[int, bytes]] | None = None,
        first: int = 0,
    ) -> None:
        self._stack.callback(os.close, fd)
        # Only LiME has a header before each region.
        gap = LIME_HEADER_SIZE if self._wanted.format == "lime" else 0
        parts = found or [Region(0, block.length, 0)]
        places = [(part.start, first + part.start + i * gap) for i, part in enumerate(parts)]
        os.ftruncate(fd, places[-1][1] + parts[-1].length)
        for place, header in headers or []:
            os.pwrite(fd, header, place)
        self._files[block.name] = BlockFile(fd, block.length, self._page_size, places)
        self.report.blocks.append(Extracted(block.name, str(path), block.length, found))

    def _device(self, section: events.DeviceSection) -> None:
        if self._folder is None:
            return
        name = file_name(len(self._devices), section.name)
        (self._folder / name).write_bytes(section.payload)
        self._devices.append(
            {
                "file": name,
                "name": section.name,
                "section_id": section.section_id,
                "instance_id": section.instance_id,
                "version": section.version,
                "offset": section.payload_offset,
            }
        )
        self.report.devices += 1
