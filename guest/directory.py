"""`dir:PATH`: a guest at rest, in a folder with `guest.json`, RAM files, device files and disks.

There is one file per RAM block and one per device section, and a raw image per disk. An incoming
guest is stored in three steps, so that it is never there in part: first the files in `ram`,
`devices` and `disks`; once all of them are durable, `guest.json.new`; at the very end that file is
renamed to `guest.json`. A folder with only `guest.json.new` holds a guest that is complete but was
not started, because its source may still run it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from . import directory_files as files
from .base import Guest
from .directory_disks import DirectoryDisks
from .directory_finish import NAME, NEW_NAME, Finisher
from .directory_format import MAX_TEXT, Contents, block_files, build, parse, section_files
from .directory_making import Making, existing_parent
from .directory_open import (
    BITMAPS,
    DEVICES,
    RAM,
    check_mappable,
    naming,
    open_blocks,
    read_state,
    subfolder,
)
from .directory_removal import Remover
from .directory_rules import (
    MAX_DEVICE_STATE,
    BlockFile,
    FormatError,
    check_blocks,
    check_description,
    check_machine,
    check_sections,
)
from .directory_writeback import Writeback
from .disks.image import Disk
from .errors import GuestError
from .parts import BlockLayout, DeviceState, Machine, RamBlock

MANY_FILES = 64
"""Number of device files from which on they are synced together; usual guests have fewer."""


class DirectoryGuest(Guest):
    """A guest that never runs here; `running` in guest.json says whether it was to run on.

    No other process can use the folder until `close`.
    """

    def __init__(self, path: str) -> None:
        """Open the guest if the folder holds one. Raises GuestError."""
        super().__init__()
        if not path or "\0" in path:
            raise GuestError("dir: needs a path")
        self._path = Path(path)
        self._absolute = os.path.abspath(path)
        self._machine: Machine | None = None
        self._blocks: tuple[RamBlock, ...] = ()
        self._state: DeviceState | None = None
        self._folder: int | None = None
        self._making = Making()
        self._disks = DirectoryDisks(path)
        self._sealed: Finisher | None = None
        self._remover: Remover | None = None
        self._writeback: Writeback | None = None
        self._kept = False
        try:
            # A missing folder can still be created by `prepare`.
            with suppress(FileNotFoundError):
                self._look(self._use(self._making.hold(files.open_path(path))))
        except OSError as error:
            self.close()
            raise GuestError(f"{path}: {error.strerror}") from error
        except GuestError:
            self.close()
            raise

    def _use(self, folder: int) -> int:
        """Lock the open folder for this guest. Raises GuestError if another process uses it."""
        self._folder = folder
        if not files.lock(folder):
            raise GuestError(f"{self._path}: another process uses the guest in this folder")
        return folder

    def _look(self, folder: int) -> None:
        if files.kind_of(folder, NAME) is not None:
            self._open(folder, NAME, "not a guest")
        elif files.is_file(folder, NEW_NAME):
            self._kept = files.kind_of(folder, RAM) is not None

    def _open(self, folder: int, name: str, otherwise: str) -> None:
        """Open the guest that `name` describes. Raises GuestError with `otherwise` in it."""
        try:
            with naming("it"):
                text = files.read_file(folder, name, MAX_TEXT)
            contents = parse(text)
            self._blocks = open_blocks(folder, contents.blocks)
            self._disks.open(folder, contents.disks)
            self._state = read_state(folder, contents)
            self._machine = contents.machine
        except FormatError as error:
            raise GuestError(f"{self._path / name}: {otherwise}: {error}") from error

    @property
    def machine(self) -> Machine:
        """Return the machine. Raises GuestError if the folder holds no guest."""
        if self._machine is None:
            raise self._no_guest()
        return self._machine

    def _no_guest(self) -> GuestError:
        if self._kept:
            return GuestError(f"{self._path}: {self._how_to_take_up}")
        return GuestError(f"{self._path}: no guest here (no {NAME})")

    @property
    def _how_to_take_up(self) -> str:
        return (
            "holds an incoming guest that was kept, not started; if its source does not run it, "
            f"take it up: {self._take_up_command}"
        )

    @property
    def _take_up_command(self) -> str:
        return f"vmferry receive --resume --guest {shlex.quote(f'dir:{self._path}')}"

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """Return the RAM blocks, one per RAM file."""
        return self._blocks

    @property
    def disks(self) -> tuple[Disk, ...]:
        """Return the disks, one per image."""
        return self._disks.disks

    @property
    def running(self) -> bool:
        """Return False: a guest at rest never runs."""
        return False

    def pause(self) -> None:
        """Do nothing: the guest does not run."""

    def resume(self) -> None:
        """Raise GuestError: a guest at rest cannot run."""
        raise GuestError(f"{self._path}: a guest at rest cannot run")

    def throttle(self, percentage: int) -> None:
        """Do nothing: the guest does not run."""

    def save_devices(self, *, running: bool = True) -> DeviceState:
        """Return the sections as they arrived; they already say whether the guest ran."""
        del running
        if self._state is None:
            raise self._no_guest()
        return self._state

    def commit(self) -> None:
        """Do nothing: the guest never runs by itself."""

    def check_incoming(self) -> None:
        """Raise GuestError unless the folder is free, or can be created, and is writable."""
        if self._machine is not None:
            raise GuestError(f"{self._path}: holds a guest already")
        if self._kept:
            raise self._no_guest()
        if self._folder is not None:
            self._check_free(self._folder)
        parent, _ = existing_parent(self._absolute)
        if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
            raise GuestError(f"{parent}: no permission to write there")

    def _check_free(self, folder: int) -> None:
        for name in (NAME, NEW_NAME, RAM, DEVICES):
            if files.kind_of(folder, name) is not None:
                raise GuestError(f"{self._path}: holds {name!r} of something else")

    def remover(self) -> Remover | None:
        """Return what removes the guest from another process. Raises GuestError."""
        if self._machine is None:
            self.check_incoming()
            self._remover = Remover.before(self._absolute)
        elif self._remover is not None and self._folder is not None:
            self._remover = self._remover.of(self._folder, self._disks.made)
        return self._remover

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Create sparse RAM files. Raises GuestError if anything is in the way."""
        self.check_incoming()
        entries = block_files(blocks)
        with self._refusing():
            check_machine(machine)
            check_blocks(entries, machine.page_size)
        try:
            with self._refusing():
                if self._folder is None:
                    self._check_free(self._use(self._making.path(self._absolute)))
                assert self._folder is not None
                ram = self._making.folder(self._folder, RAM)
                for entry in entries:
                    self._make_block(ram, entry)
                check_mappable(self._blocks)
        except GuestError:
            self.abort_incoming()
            raise
        self._machine = machine
        self._writeback = Writeback(block.fd for block in self._blocks)

    def prepare_disk(self, name: str) -> Disk:
        """Take the disk into the image of its name in `disks`, which is made if there is none."""
        assert self._folder is not None
        with self._refusing():
            return self._disks.prepare(self._folder, self._making, name)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Raise GuestError for data that cannot be stored."""
        try:
            yield
        except FormatError as error:
            raise GuestError(f"{self._path}: this guest cannot be kept here: {error}") from error
        except OSError as error:
            raise GuestError(f"{self._path}: {error.strerror}") from error

    def _make_block(self, ram: int, entry: BlockFile) -> None:
        layout, fd = entry.layout, self._making.file(ram, entry.file)
        self._blocks += (RamBlock(layout.name, layout.length, layout.page_size, fd),)
        os.ftruncate(fd, layout.length)

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Write each section to its own file. Raises GuestError."""
        early = section_files(state.early)
        sections = section_files(state.sections, len(early))
        size = sum(len(section.payload) for section in (*state.early, *state.sections))
        with self._refusing():
            check_sections(state.ram_section_id, early, sections)
            check_description(state.description, machine.page_size)
            if size > MAX_DEVICE_STATE:
                raise FormatError(f"{size} bytes of device state, more than {MAX_DEVICE_STATE}")
            assert self._folder is not None
            folder = self._making.folder(self._folder, DEVICES)
            payloads = [section.payload for section in (*state.early, *state.sections)]
            for entry, payload in zip((*early, *sections), payloads, strict=True):
                files.write(self._making.file(folder, entry.file), payload)
            if state.bitmaps:
                files.write(self._making.file(folder, BITMAPS), state.bitmaps)
        self._machine, self._state = machine, state

    def invalidate_caches(self) -> None:
        """Make the images durable, and drop what the system has cached of them."""
        self._disks.flush()

    def seal(self, *, running: bool) -> None:
        """Make RAM and devices durable, then write guest.json.new, which says that they are.

        Only then the images get their names: from now on they belong to a whole guest.
        """
        folder = self._folder
        assert folder is not None
        self._stop_writeback()
        with self._refusing():
            contents = self._contents(running)
            text = build(contents)
            names = [section.file for section in (*contents.early, *contents.sections)]
            self._sync(folder, names + ([BITMAPS] if contents.bitmaps else []))
            if files.kind_of(folder, NAME) is not None:
                raise FormatError(f"the folder holds {NAME!r} of something else")
            self._making.sync()
            files.write(self._making.file(folder, NEW_NAME), text)
            files.sync_files(folder, [NEW_NAME])
            self._disks.settle()
            self._sealed = Finisher.of(self._absolute, folder)

    def _sync(self, folder: int, devices: Sequence[str]) -> None:
        """Make RAM and the device files durable. Raises OSError or FormatError."""
        for block in self._blocks:
            os.fsync(block.fd)
        if len(devices) < MANY_FILES or not files.sync_at_once(folder):
            with subfolder(folder, DEVICES) as opened:
                files.sync_files(opened, devices)

    def _contents(self, running: bool) -> Contents:
        machine, state = self.machine, self.save_devices()
        layouts = [BlockLayout(b.name, b.length, b.page_size) for b in self._blocks]
        return Contents(
            machine=machine,
            running=running,
            blocks=block_files(layouts),
            ram_section_id=state.ram_section_id,
            early=section_files(state.early),
            sections=section_files(state.sections, len(state.early)),
            description=state.description,
            disks=self._disks.entries(),
            bitmaps=len(state.bitmaps),
        )

    def finisher(self) -> Finisher | None:
        """Return what renames guest.json.new from another process; None before `seal`."""
        return self._sealed

    def complete(self, *, running: bool) -> None:
        """Rename guest.json.new to guest.json; nothing is left to write that might fail."""
        del running
        if self._sealed is None or self._folder is None:
            raise GuestError(f"{self._path}: the guest was not sealed, so it cannot be completed")
        self._sealed.finish(self._folder)
        self._making.settle()
        self._sealed = None

    def keep(self) -> str:
        """Leave the sealed guest in its folder, with guest.json.new. Raises GuestError."""
        if self._sealed is None:
            raise GuestError(f"{self._path}: the guest is not complete, so it cannot be kept")
        self._making.settle()
        self.close()
        self._machine, self._state, self._sealed, self._kept = None, None, None, True
        return (
            f"the guest is kept, complete, in {self._path}; if the source does not run it: "
            f"{self._take_up_command}"
        )

    def take_up(self) -> None:
        """Complete the guest that was kept here, if it is whole. Raises GuestError."""
        if self._machine is not None:
            raise GuestError(f"{self._path}: holds a guest already")
        if self._folder is None or not self._kept:
            raise GuestError(f"{self._path}: no guest was kept here (no {NEW_NAME})")
        self._open(self._folder, NEW_NAME, "incomplete")
        Finisher.of(self._absolute, self._folder).finish(self._folder)
        self._kept = False

    def abort_incoming(self) -> None:
        """Remove what this guest created, and nothing else.

        A guest that another process has completed meanwhile stays.
        """
        folder, sealed = self._folder, self._sealed is not None
        if sealed and folder is not None and not files.is_file(folder, NEW_NAME):
            self._making.settle()
        else:
            self._disks.abandon()
        self._making.undo()
        self.close()
        self._machine, self._state, self._sealed = None, None, None

    def close(self) -> None:
        """Close the files, so that other processes may use the folder."""
        self._stop_writeback()
        for block in self._blocks:
            os.close(block.fd)
        self._disks.close()
        self._making.close()
        self._blocks, self._folder = (), None

    def _stop_writeback(self) -> None:
        if self._writeback is not None:
            self._writeback.stop()
            self._writeback = None
