"""`dir:PATH`: a guest at rest. `guest.json`, one RAM file a block, one file a device section.

An incoming guest becomes one in three steps, so that it is never half there: files in `ram` and
`devices`; when all of them last, `guest.json.new`; and at the very end that one's name becomes
`guest.json`. A folder with only `guest.json.new` holds a guest that is complete, but was not
started: it is not known whether its source runs on.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from . import directory_files as files
from .base import (
    BlockLayout,
    DeviceSection,
    DeviceState,
    Guest,
    GuestError,
    Machine,
    RamBlock,
)
from .directory_finish import NAME, NEW_NAME, Finisher
from .directory_format import (
    MAX_TEXT,
    BlockFile,
    Contents,
    FormatError,
    SectionFile,
    block_files,
    build,
    check_blocks,
    check_description,
    check_machine,
    check_sections,
    parse,
    section_files,
    shown,
)

MAX_DEVICE_STATE = 8 << 30
"""Bytes of the state of all devices, which is held in memory."""
RAM = "ram"
DEVICES = "devices"


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
        self._folders: list[int] = []
        self._undo: list[Callable[[], None]] = []
        self._sealed: Finisher | None = None
        self._kept = False
        try:
            # A folder that is missing can still be made, by `prepare`.
            with suppress(FileNotFoundError):
                self._look(self._use(files.open_path(path)))
        except OSError as error:
            self.close()
            raise GuestError(f"{path}: {error.strerror}") from error
        except GuestError:
            self.close()
            raise

    def _use(self, folder: int) -> int:
        """Make the open folder ours. Raises GuestError where another process uses it."""
        self._folder = folder
        self._folders.append(folder)
        if not files.lock(folder):
            raise GuestError(f"{self._path}: another process uses the guest in this folder")
        return folder

    def _look(self, folder: int) -> None:
        if files.kind_of(folder, NAME) is not None:
            self._open(folder, NAME, "not a guest")
        elif files.is_file(folder, NEW_NAME):
            self._kept = files.kind_of(folder, RAM) is not None

    def _open(self, folder: int, name: str, otherwise: str) -> None:
        """Open the guest that `name` describes. Raises GuestError that says it is `otherwise`."""
        try:
            with _naming("it"):
                text = files.read_file(folder, name, MAX_TEXT)
            contents = parse(text)
            self._open_blocks(folder, contents.blocks)
            self._state = _read_state(folder, contents)
            self._machine = contents.machine
        except FormatError as error:
            raise GuestError(f"{self._path / name}: {otherwise}: {error}") from error

    def _open_blocks(self, folder: int, blocks: Sequence[BlockFile]) -> None:
        with _subfolder(folder, RAM) as ram:
            for index, block in enumerate(blocks):
                where, layout = f"blocks[{index}].file {shown(block.file)}", block.layout
                with _naming(where):
                    fd = files.open_file(ram, block.file, os.O_RDWR)
                opened = RamBlock(layout.name, layout.length, layout.page_size, fd)
                self._blocks += (opened,)
                size = os.fstat(fd).st_size
                if size != layout.length:
                    raise FormatError(f"{where} has {size} bytes, its block {layout.length}")

    @property
    def machine(self) -> Machine:
        """Raises GuestError when the folder holds no guest."""
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
        """The RAM files."""
        return self._blocks

    @property
    def running(self) -> bool:
        """Never: a guest at rest."""
        return False

    def pause(self) -> None:
        """Do nothing: it does not run."""

    def resume(self) -> None:
        """Raise GuestError: a guest at rest cannot run."""
        raise GuestError(f"{self._path}: a guest at rest cannot run")

    def throttle(self, percentage: int) -> None:
        """Do nothing: it does not run."""

    def save_devices(self, *, running: bool = True) -> DeviceState:
        """Return the sections as they arrived, which say themselves whether it ran."""
        del running
        if self._state is None:
            raise self._no_guest()
        return self._state

    def commit(self) -> None:
        """Do nothing: it does not run by itself."""

    def check_incoming(self) -> None:
        """Raise GuestError unless the folder is free, or can be made, and can be written."""
        if self._machine is not None:
            raise GuestError(f"{self._path}: holds a guest already")
        if self._kept:
            raise self._no_guest()
        if self._folder is not None:
            self._check_free(self._folder)
        parent, _ = self._existing_parent()
        if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
            raise GuestError(f"{parent}: no permission to write there")

    def _check_free(self, folder: int) -> None:
        for name in (NAME, NEW_NAME, RAM, DEVICES):
            if files.kind_of(folder, name) is not None:
                raise GuestError(f"{self._path}: holds {name!r} of something else")

    def _existing_parent(self) -> tuple[str, list[str]]:
        """Return the folder, or the nearest above it that exists, and the names that lack."""
        parent, missing = self._absolute, list[str]()
        while not os.path.lexists(parent):
            parent, name = os.path.split(parent)
            missing.insert(0, name)
        return parent, missing

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Make sparse RAM files. Raises GuestError when anything is in the way."""
        self.check_incoming()
        entries = block_files(blocks)
        with self._refusing():
            check_machine(machine)
            check_blocks(entries, machine.page_size)
        try:
            folder = self._make_path()
            ram = self._make_folder(folder, RAM)
            for entry in entries:
                self._make_block(ram, entry)
        except (OSError, GuestError) as error:
            self.abort_incoming()
            if isinstance(error, GuestError):
                raise
            raise GuestError(f"{self._path}: {error.strerror}") from error
        self._machine = machine

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Raise GuestError for what cannot be written as wanted."""
        try:
            yield
        except FormatError as error:
            raise GuestError(f"{self._path}: this guest cannot be kept here: {error}") from error
        except OSError as error:
            raise GuestError(f"{self._path}: {error.strerror}") from error

    def _make_path(self) -> int:
        """Make the folder, and those above it that lack."""
        if self._folder is None:
            parent, missing = self._existing_parent()
            folder = files.open_path(parent)
            for name in missing:
                self._folders.append(folder)
                folder = self._make_folder(folder, name, ours=False)
            self._check_free(self._use(folder))
        assert self._folder is not None
        return self._folder

    def _make_folder(self, folder: int, name: str, *, ours: bool = True) -> int:
        """Make a folder; `ours`: its descriptor is closed with the guest."""
        made = files.make_folder(folder, name)
        self._undo.append(lambda: os.rmdir(name, dir_fd=folder))
        if ours:
            self._folders.append(made)
        return made

    def _make_block(self, ram: int, entry: BlockFile) -> None:
        layout, name = entry.layout, entry.file
        fd = files.make_file(ram, name)
        self._undo.append(lambda: os.unlink(name, dir_fd=ram))
        self._blocks += (RamBlock(layout.name, layout.length, layout.page_size, fd),)
        os.ftruncate(fd, layout.length)

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Write each section to a file of its own. Raises GuestError."""
        early = section_files(state.early)
        sections = section_files(state.sections, len(early))
        size = sum(len(section.payload) for section in (*state.early, *state.sections))
        with self._refusing():
            check_sections(state.ram_section_id, early, sections)
            check_description(state.description, machine.page_size)
            if size > MAX_DEVICE_STATE:
                raise FormatError(f"{size} bytes of device state, more than {MAX_DEVICE_STATE}")
            assert self._folder is not None
            folder = self._make_folder(self._folder, DEVICES)
            for entry, section in zip(
                (*early, *sections), (*state.early, *state.sections), strict=True
            ):
                self._make_file(folder, entry.file, section.payload)
        self._machine, self._state = machine, state

    def _make_file(self, folder: int, name: str, data: bytes) -> None:
        fd = files.make_file(folder, name)
        self._undo.append(lambda: os.unlink(name, dir_fd=folder))
        files.write(fd, data)

    def invalidate_caches(self) -> None:
        """Do nothing: nothing is cached."""

    def seal(self, *, running: bool) -> None:
        """Make RAM and devices last, then write guest.json.new, which says that they do."""
        folder = self._folder
        assert folder is not None
        with self._refusing():
            contents = self._contents(running)
            text = build(contents)
            for block in self._blocks:
                os.fsync(block.fd)
            names = [section.file for section in (*contents.early, *contents.sections)]
            with _subfolder(folder, DEVICES) as devices:
                files.sync_files(devices, names)
            if files.kind_of(folder, NAME) is not None:
                raise FormatError(f"the folder holds {NAME!r} of something else")
            for made in self._folders:
                os.fsync(made)
            self._make_file(folder, NEW_NAME, text)
            files.sync_files(folder, [NEW_NAME])
            self._sealed = Finisher.of(self._absolute, folder)

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
        )

    def finisher(self) -> Finisher | None:
        """Return what gives guest.json its name from another process; None before `seal`."""
        return self._sealed

    def complete(self, *, running: bool) -> None:
        """Give guest.json its name: nothing is left to write that might fail."""
        if self._sealed is None:
            self.seal(running=running)
        assert self._sealed is not None
        assert self._folder is not None
        self._sealed.finish(self._folder)
        self._sealed, self._undo = None, []

    def keep(self) -> str:
        """Leave the sealed guest in its folder, with guest.json.new. Raises GuestError."""
        if self._sealed is None:
            raise GuestError(f"{self._path}: the guest is not complete, so it cannot be kept")
        self.close()
        self._machine, self._state, self._sealed, self._undo = None, None, None, []
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
        """Remove what this guest made, and nothing else.

        A guest that another process has completed meanwhile stays.
        """
        undo, self._undo = self._undo, []
        folder, sealed = self._folder, self._sealed is not None
        if sealed and folder is not None and not files.is_file(folder, NEW_NAME):
            undo = []
        for step in reversed(undo):
            # What cannot be removed stays; the user needs the error that led here, not this one.
            with suppress(OSError):
                step()
        self.close()
        self._machine, self._state, self._sealed = None, None, None

    def close(self) -> None:
        """Close the files, so that other processes may use the folder."""
        for fd in (*(block.fd for block in self._blocks), *self._folders):
            os.close(fd)
        self._blocks, self._folders, self._folder = (), [], None


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Raise FormatError that begins with `where`, for what is wrong with a file."""
    try:
        yield
    except OSError as error:
        raise FormatError(f"{where} {error.strerror}") from error


@contextmanager
def _subfolder(folder: int, name: str) -> Iterator[int]:
    """Open a folder of the guest. Raises FormatError."""
    with _naming(f"folder {name!r}"):
        fd = files.open_folder(folder, name)
    try:
        yield fd
    finally:
        os.close(fd)


def _read_state(folder: int, contents: Contents) -> DeviceState:
    """Return the state of all devices. Raises FormatError."""
    left = MAX_DEVICE_STATE
    read: dict[str, list[DeviceSection]] = {"early": [], "sections": []}
    with _subfolder(folder, DEVICES) as devices:
        for member, found in read.items():
            for index, entry in enumerate(getattr(contents, member)):
                found.append(_read_section(devices, f"{member}[{index}]", entry, left))
                left -= len(found[-1].payload)
    return DeviceState(
        early=tuple(read["early"]),
        sections=tuple(read["sections"]),
        description=contents.description,
        ram_section_id=contents.ram_section_id,
    )


def _read_section(devices: int, where: str, entry: SectionFile, limit: int) -> DeviceSection:
    where = f"{where}.file {shown(entry.file)}"
    with _naming(where):
        payload = files.read_file(devices, entry.file, limit)
    if entry.size is not None and entry.size != len(payload):
        raise FormatError(f"{where} has {len(payload)} bytes, its section {entry.size}")
    return DeviceSection(
        section_id=entry.section_id,
        name=entry.name,
        instance_id=entry.instance_id,
        version=entry.version,
        payload=payload,
    )
