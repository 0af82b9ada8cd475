"""Extracts a guest from a stream to files: RAM (raw images, an ELF core or LiME), disks, device
state.

Memory use does not grow with the guest, because pages are modified in the output file itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...guest.file_names import file_name
from ...protocol import events
from ...protocol.errors import StreamError
from ...protocol.formats.memory_image import Region
from ...protocol.section_events import DiskBlock
from ...protocol.wire.kept import Payload, pieces
from ...protocol.wire.marks import DEFAULT_PAGE_SIZE
from ..console.failure import CommandError, named
from ..machines.main_ram import Guest
from ..machines.plugged import LeftOut
from ..rebuild.arrivals import Arrivals, MissingPages
from ..rebuild.block_file import BlockFile, Run, check_run, part_of
from ..rebuild.guest import absent_message
from ..rebuild.staged import Staged
from ..sources.domain import Domain
from ..sources.source import Left
from ..sources.stream_events import USUALLY, Behind, Found, How, read_events
from .disks import Disk, DiskFiles
from .memory_output import Asked, MemoryOutput

if TYPE_CHECKING:
    from ..rescue.survey import Survey
    from ..rescue.survival import Survival
    from ..sources.channels import Channels


class ExtractError(CommandError):
    """Raised if the stream does not contain what was requested; the message is one line."""


@dataclass(frozen=True)
class Wanted:
    """The outputs and options of an extraction.

    `blocks` names the RAM blocks to write one after another; if it is empty, these are the guest's
    main memory. `placed` has further blocks with their addresses. `everything` writes all blocks
    into a folder. `out` is the output for RAM, `devices` the folder for device state, `disks` the
    folder for disks. `machine` is the machine type, if the stream has none or another one; `arch`
    is QEMU's name of the processor; `base` is the address at which memory begins; `domain` is the
    libvirt domain of the guest. `max_below_4g` is that of main_ram.Guest. `partial` keeps what is
    intact in a damaged stream. `how` has the options of `read_events`.
    """

    out: Path | None
    blocks: tuple[str, ...] = ()
    everything: bool = False
    format: str = "raw"
    devices: Path | None = None
    max_below_4g: int | None = None
    partial: bool = False
    disks: Path | None = None
    how: How = USUALLY
    placed: tuple[tuple[str, int], ...] = ()
    machine: str | None = None
    arch: str | None = None
    base: int | None = None
    domain: Domain | None = None


@dataclass(frozen=True)
class Extracted:
    """A RAM block that was written to `file`; `regions` has its guest addresses, or None if
    unknown.
    """

    block: str
    file: str
    length: int
    regions: list[Region] | None

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys block, file, length, regions (None, or objects with the
        keys start, length, address).
        """
        return asdict(self)


@dataclass
class Report:
    """The result of an extraction.

    `absent` names the blocks that are not in the stream. `processors` is the number of processors
    whose registers are in the ELF core. `behind` counts the bytes after the stream. `missing` has
    the pages of the written blocks that never arrived and are zero in the output. For a damaged
    stream, `damage` is the first error; `survival` is the fate of its pages and devices, if it was
    recorded. `left_out` is memory that is in no output; `notices` are further lines for the user.
    """

    blocks: list[Extracted] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    devices: int = 0
    processors: int = 0
    disks: list[Disk] = field(default_factory=list)
    behind: Left | None = None
    missing: list[MissingPages] = field(default_factory=list)
    damage: StreamError | None = None
    survival: Survival | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report as a dictionary for JSON.

        Keys: blocks (of Extracted.as_json), absent (names), devices (number of sections),
        processors (number with registers in the ELF core), disks (of Disk.as_json), behind (None,
        or of Left.as_json), missing (of MissingPages.as_json), survival (None, or with --partial of
        Survival.as_json), left_out (of LeftOut.as_json), notices (lines).
        """
        return {
            "blocks": [block.as_json() for block in self.blocks],
            "absent": self.absent,
            "devices": self.devices,
            "processors": self.processors,
            "disks": [disk.as_json() for disk in self.disks],
            "behind": None if self.behind is None else self.behind.as_json(),
            "missing": [pages.as_json() for pages in self.missing],
            "survival": None if self.survival is None else self.survival.as_json(),
            "left_out": [left.as_json() for left in self.left_out],
            "notices": self.notices,
        }


def extract(stream: BinaryIO, wanted: Wanted, channels: Channels | None = None) -> Report:
    """Read the whole stream and write the outputs. Raises StreamError, ExtractError, LayoutError,
    OSError.

    If an error is raised, no output is kept. With `partial`, StreamError is only raised if nothing
    can be extracted; otherwise the report has the damage.
    """
    with ExitStack() as stack, Staged() as staged:
        # Pages of channels are sent in any order, and the salvager cannot find them after damage.
        if wanted.partial and channels is None:
            report = _extract_around_damage(stream, wanted, staged, stack)
        else:
            report = _extract_sound(stream, wanted, channels, _Extraction(wanted, staged, stack))
        staged.keep()
        return report


def _extract_sound(
    stream: BinaryIO, wanted: Wanted, channels: Channels | None, work: _Extraction
) -> Report:
    """Read up to the first damage, which is reported with `partial`, and raised otherwise."""
    try:
        for event in read_events(stream, wanted.how, channels):
            work.take(event)
    except StreamError as error:
        if not wanted.partial or not work.listed:
            raise
        work.report.damage = error
    return work.finish()


def _extract_around_damage(
    stream: BinaryIO, wanted: Wanted, staged: Staged, stack: ExitStack
) -> Report:
    """Read what is intact before and after damage."""
    # Most streams are intact, and importing these modules takes longer than reading a small stream.
    from ...protocol.rescue.damage import Damage, Mended, Unplaced  # noqa: PLC0415
    from ..rescue.salvage_events import Salvager  # noqa: PLC0415
    from ..rescue.survey import Survey  # noqa: PLC0415

    survey = Survey()
    work = _Extraction(wanted, staged, stack, survey)
    salvager = Salvager(stream, survey, wanted.how)
    for salvaged in salvager.read():
        survey.take(salvaged)
        if not isinstance(salvaged, (Damage, Mended, Unplaced)):
            work.take(salvaged)
    work.report.damage = salvager.error
    return work.finish()


class _Extraction:
    """The extraction from one stream, which takes its events one after the other."""

    def __init__(
        self, wanted: Wanted, staged: Staged, stack: ExitStack, survey: Survey | None = None
    ) -> None:
        self._wanted = wanted
        self._staged = staged
        self._stack = stack
        self._survey = survey
        named_by_libvirt = "" if wanted.domain is None else wanted.domain.machine
        self._machine = wanted.machine or named_by_libvirt
        self._page_size = wanted.how.page_size or DEFAULT_PAGE_SIZE
        self._files: dict[str, BlockFile] = {}
        self._paths: dict[str, Path] = {}
        self._shown: dict[str, Path] = {}
        self._devices: list[dict[str, Any]] = []
        self._folder = None if wanted.devices is None else staged.folder(wanted.devices)
        self._disks: DiskFiles | None = None
        if wanted.disks is not None:
            self._disks = DiskFiles(staged.folder(wanted.disks), wanted.disks, stack)
        self._arrivals = Arrivals()
        self.listed = False
        self._memory: MemoryOutput | None = None
        self._description: events.Description | None = None
        self.report = Report()

    def take(self, event: Found) -> None:
        """Process the next event of the stream."""
        self._arrivals.take(event)
        if isinstance(event, events.Configuration):
            self._machine = self._wanted.machine or event.machine
        elif isinstance(event, events.RamBlocks):
            self._page_size = event.page_size
            self._open(event.blocks)
        elif isinstance(event, (events.PageRun, events.EncodedRun)):
            self._pages(event)
        elif isinstance(event, DiskBlock) and self._disks is not None:
            self._disks.take(event)
            self.report.disks = self._disks.disks
        elif isinstance(event, events.DeviceSection):
            self._device(event)
        elif isinstance(event, events.Description):
            self._describe(event)
        elif isinstance(event, Behind):
            self.report.behind = event.left

    def _pages(self, run: events.PageRun | events.EncodedRun) -> None:
        file = self._files.get(run.block.name)
        if file is not None:
            with named(self._shown[run.block.name]):
                self._put(run, file.take)
        else:
            self._put(run, lambda some: check_run(some, self._page_size))

    def _put(self, run: Run, put: Callable[[Run], None]) -> None:
        """Write a run to its block; in a damaged stream, skip pages whose encoding is damaged.

        On an error the pages are written one by one; writing some of them twice changes nothing.
        """
        try:
            put(run)
        except StreamError:
            if self._survey is None:
                raise
            for index in range(len(run.offsets)):
                page = part_of(run, slice(index, index + 1))
                try:
                    put(page)
                except StreamError:
                    self._survey.spoil(page)

    def finish(self) -> Report:
        """Complete the outputs at the end of the stream, and return the report."""
        if not self.listed and self._wanted.out is not None:
            raise ExtractError("the stream has no RAM")
        if self._disks is not None and not self.report.disks:
            raise ExtractError("the stream has no disks")
        self._finish_memory()
        self._leave_out_absent()
        if self._folder is not None:
            text = json.dumps(self._devices, indent=1)
            self._write("devices.json", text.encode())
        if self._survey is None:
            self._note_missing()
        else:
            names = {block.block for block in self.report.blocks}
            self.report.survival = self._survey.finish(names, self._arrivals)
        return self.report

    def _leave_out_absent(self) -> None:
        """Remove the files of shared blocks that did not arrive."""
        absent = [block for block in self.report.blocks if block.block in self._arrivals.absent]
        if absent and not self._wanted.everything:
            raise ExtractError(absent_message(absent[0].block))
        for block in absent:
            self._paths[block.block].unlink()
            self.report.blocks.remove(block)
            self.report.absent.append(block.block)

    def _note_missing(self) -> None:
        """Report the pages of the written blocks that never arrived and are zero in the output."""
        names = {block.block for block in self.report.blocks}
        if names:
            missing = self._arrivals.missing()
            self.report.missing = [pages for pages in missing if pages.block in names]

    def _open(self, blocks: tuple[events.RamBlock, ...]) -> None:
        """Open the outputs for all requested blocks."""
        self.listed = True
        out, wanted = self._wanted.out, self._wanted
        if out is None:
            return
        if not wanted.everything:
            asked = Asked(wanted.format, wanted.blocks, wanted.placed, wanted.arch)
            self._memory = MemoryOutput(asked, self._guest(), blocks, self._page_size, self._stack)
            fd = self._staged.file(out)
            self._stack.callback(os.close, fd)
            self._memory.open(fd, out)
            self._files = self._memory.files
            self._shown = dict.fromkeys(self._files, out)
            return
        folder = self._staged.folder(out)
        for number, block in enumerate(blocks):
            path = folder / file_name(number, block.name)
            self._paths[block.name] = path
            shown = out / path.name
            with named(shown):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._stack.callback(os.close, fd)
                os.ftruncate(fd, block.length)
            self._files[block.name] = BlockFile(fd, block.length, self._page_size)
            self._shown[block.name] = shown
            self.report.blocks.append(Extracted(block.name, str(shown), block.length, None))

    def _guest(self) -> Guest:
        """Return the facts that determine the guest's memory layout."""
        wanted, domain = self._wanted, self._wanted.domain
        target = wanted.arch or (None if domain is None else domain.target)
        plugged = {} if domain is None else domain.plugged
        return Guest(self._machine, target, wanted.base, wanted.max_below_4g, plugged)

    def _finish_memory(self) -> None:
        """Complete the memory output and report what it contains."""
        if self._memory is None:
            return
        assert self._wanted.out is not None
        written = self._memory.finish(
            self._description, self._arrivals.absent, damaged=self.report.damage is not None
        )
        out = str(self._wanted.out)
        self.report.blocks = [
            Extracted(block.name, out, block.length, seen) for block, seen, _ in written.parts
        ]
        self.report.left_out = written.left
        self.report.notices = written.notices
        self.report.processors = written.processors or 0

    def _describe(self, description: events.Description) -> None:
        if self._folder is not None:
            self._write("description.json", description.text)
        self._description = description

    def _device(self, section: events.DeviceSection) -> None:
        if self._memory is not None:
            self._memory.take(section)
        if self._folder is None:
            return
        name = file_name(len(self._devices), section.name)
        self._write(name, section.payload)
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

    def _write(self, name: str, data: Payload) -> None:
        """Write a file in the folder for device state."""
        assert self._folder is not None
        assert self._wanted.devices is not None
        with named(self._wanted.devices / name), (self._folder / name).open("wb") as file:
            file.writelines(pieces(data))
