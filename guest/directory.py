"""`dir:PATH`: a guest at rest. `guest.json`, one RAM file a block, one file a device section.

`guest.json` is written last and at once, so a directory without it holds no guest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from .base import (
    BlockLayout,
    DeviceSection,
    DeviceState,
    Guest,
    GuestError,
    Machine,
    RamBlock,
)
from .file_names import file_name

FORMAT = 1
MAX_NAME = 255
"""Bytes of a name on the wire."""

_T = TypeVar("_T")


class DirectoryGuest(Guest):
    """Never runs here; `running` in guest.json says whether it was to run on."""

    def __init__(self, path: str) -> None:
        """Opens the guest if the directory holds one. Raises GuestError."""
        super().__init__()
        if not path:
            raise GuestError("dir: needs a path")
        self._path = Path(path)
        self._machine: Machine | None = None
        self._blocks: tuple[RamBlock, ...] = ()
        self._state: DeviceState | None = None
        self._made: list[Path] = []
        try:
            present = self._description_path.exists()
        except OSError as error:
            raise GuestError(f"{path}: {error.strerror}") from error
        if present:
            self._open()

    @property
    def _description_path(self) -> Path:
        return self._path / "guest.json"

    @property
    def _new_description_path(self) -> Path:
        return self._path / "guest.json.new"

    def _open(self) -> None:
        try:
            document = json.loads(self._description_path.read_text())
            if _field(document, "format", int) != FORMAT:
                raise ValueError(f"format {document['format']}, where {FORMAT} is known")
            self._machine = _machine_from(_field(document, "machine", dict))
            self._state = self._state_from(document)
            for entry in _field(document, "blocks", list):
                self._blocks += (self._open_block(entry, self._machine.page_size),)
        except (OSError, ValueError, RecursionError) as error:
            self.close()
            raise GuestError(f"{self._description_path}: not a guest: {error}") from error

    def _open_block(self, entry: dict[str, Any], page_size: int) -> RamBlock:
        name, length = _name(entry, "name"), _field(entry, "length", int)
        if length <= 0 or length % page_size:
            raise ValueError(f"RAM block {name!r} has length {length}")
        path = self._path / "ram" / Path(_field(entry, "file", str)).name
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        size = os.fstat(fd).st_size
        if size != length:
            os.close(fd)
            raise ValueError(f"{path.name} has {size} bytes, RAM block {name!r} {length}")
        return RamBlock(name, length, page_size, fd)

    def _state_from(self, document: dict[str, Any]) -> DeviceState:
        return DeviceState(
            early=tuple(map(self._section_from, _field(document, "early", list))),
            sections=tuple(map(self._section_from, _field(document, "sections", list))),
            description=_description(_optional(document, "description", str)),
            ram_section_id=_number(document, "ram_section_id"),
        )

    def _section_from(self, entry: dict[str, Any]) -> DeviceSection:
        path = self._path / "devices" / Path(_field(entry, "file", str)).name
        return DeviceSection(
            section_id=_number(entry, "section_id"),
            name=_name(entry, "name"),
            instance_id=_number(entry, "instance_id"),
            version=_number(entry, "version"),
            payload=path.read_bytes(),
        )

    @property
    def machine(self) -> Machine:
        """Raises GuestError when the directory holds no guest."""
        if self._machine is None:
            raise GuestError(f"{self._path}: no guest here (no guest.json)")
        return self._machine

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """The RAM files."""
        return self._blocks

    @property
    def running(self) -> bool:
        """Never: a guest at rest."""
        return False

    def pause(self) -> None:
        """Nothing to do."""

    def resume(self) -> None:
        """A guest at rest cannot run. Raises GuestError."""
        raise GuestError(f"{self._path}: a guest at rest cannot run")

    def throttle(self, percentage: int) -> None:
        """Nothing to do."""

    def save_devices(self, *, running: bool = True) -> DeviceState:
        """The sections as they arrived, which say themselves whether it ran."""
        del running
        if self._state is None:
            raise GuestError(f"{self._path}: no guest here (no guest.json)")
        return self._state

    def commit(self) -> None:
        """Nothing to do: it does not run by itself."""

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Sparse RAM files. Raises GuestError when a guest is here already."""
        if self._machine is not None:
            raise GuestError(f"{self._path}: holds a guest already")
        if any((self._path / name).exists() for name in ("ram", "devices")):
            raise GuestError(f"{self._path}: holds 'ram' or 'devices' of something else")
        try:
            self._make_folder(self._path)
            self._make_folder(self._path / "ram")
            for number, block in enumerate(blocks):
                self._make_block(number, block)
        except OSError as error:
            self.abort_incoming()
            raise GuestError(f"{self._path}: {error.strerror}") from error
        self._machine = machine

    def _make_folder(self, path: Path) -> None:
        if not path.exists():
            path.mkdir(parents=True)
            self._made.append(path)

    def _make_block(self, number: int, block: BlockLayout) -> None:
        path = self._path / "ram" / file_name(number, block.name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._blocks += (RamBlock(block.name, block.length, block.page_size, fd),)
        os.ftruncate(fd, block.length)

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Write each section to a file of its own, and guest.json under another name.

        All of it is on the disk when this returns: the source gives its guest up then.
        """
        folder = self._path / "devices"
        try:
            self._make_folder(folder)
            for number, section in enumerate((*state.early, *state.sections)):
                _write(folder / file_name(number, section.name), section.payload)
            self._machine, self._state = machine, state
            self._write_description(running=True)
            for block in self._blocks:
                os.fsync(block.fd)
            for path in (folder, self._path / "ram", self._path):
                _sync_folder(path)
        except OSError as error:
            raise GuestError(f"{self._path}: {error.strerror}") from error

    def invalidate_caches(self) -> None:
        """Nothing is cached."""

    def complete(self, *, running: bool) -> None:
        """Give guest.json its name; as a rule nothing is left to write that might fail."""
        try:
            if not running:
                self._write_description(running=False)
            self._new_description_path.replace(self._description_path)
            _sync_folder(self._path)
        except OSError as error:
            raise GuestError(f"{self._path}: {error.strerror}") from error
        self._made = []

    def _write_description(self, *, running: bool) -> None:
        text = json.dumps(self._document(running), indent=1)
        _write(self._new_description_path, text.encode())

    def _document(self, running: bool) -> dict[str, Any]:
        machine, state, description = self.machine, self.save_devices(), None
        if state.description is not None:
            description = state.description.decode("utf-8", "surrogateescape")
        sections = [*state.early, *state.sections]
        entries = [_section_entry(number, section) for number, section in enumerate(sections)]
        return {
            "format": FORMAT,
            "running": running,
            "machine": {
                "name": machine.name,
                "page_size": machine.page_size,
                "page_bits_sent": machine.page_bits_sent,
                "capabilities": machine.capabilities,
                "uuid": None if machine.uuid is None else machine.uuid.hex(),
            },
            "blocks": [
                {"name": b.name, "length": b.length, "file": file_name(number, b.name)}
                for number, b in enumerate(self._blocks)
            ],
            "ram_section_id": state.ram_section_id,
            "early": entries[: len(state.early)],
            "sections": entries[len(state.early) :],
            "description": description,
        }

    def abort_incoming(self) -> None:
        """Remove what this guest made, and nothing else."""
        self.close()
        if self._made:
            self._new_description_path.unlink(missing_ok=True)
        for folder in reversed(self._made):
            if folder != self._path:
                shutil.rmtree(folder, ignore_errors=True)
            elif not any(folder.iterdir()):
                folder.rmdir()
        self._machine, self._state, self._made = None, None, []

    def close(self) -> None:
        """Close the RAM files."""
        for block in self._blocks:
            os.close(block.fd)
        self._blocks = ()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the names in it last."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _field(entry: Any, name: str, kind: type[_T]) -> _T:
    """A member of a JSON object. Raises ValueError when it is missing or of another type."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise ValueError(f"no {name!r} in it that is {kind.__name__}")
    return value


def _optional(entry: dict[str, Any], name: str, kind: type[_T]) -> _T | None:
    return None if entry.get(name) is None else _field(entry, name, kind)


def _number(entry: Any, name: str) -> int:
    value = _field(entry, name, int)
    if not 0 <= value < 1 << 32:
        raise ValueError(f"{name!r} is {value}")
    return value


def _name(entry: Any, name: str) -> str:
    value = _field(entry, name, str)
    if not 0 < len(value.encode("utf-8", "surrogatepass")) <= MAX_NAME:
        raise ValueError(f"{name!r} is {value[:20]!r}, empty or longer than {MAX_NAME} bytes")
    return value


def _description(text: str | None) -> bytes | None:
    """The description of devices, as it is on the wire."""
    if text is not None and not isinstance(json.loads(text), dict):
        raise ValueError("its description is not a JSON object")
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _machine_from(entry: dict[str, Any]) -> Machine:
    capabilities, uuid = _optional(entry, "capabilities", list), _optional(entry, "uuid", str)
    page_size = _field(entry, "page_size", int)
    if page_size < 1024 or page_size & (page_size - 1):
        raise ValueError(f"page size {page_size}")
    if uuid is not None and len(bytes.fromhex(uuid)) != 16:
        raise ValueError(f"uuid {uuid!r}")
    return Machine(
        name=_field(entry, "name", str),
        page_size=page_size,
        capabilities=None if capabilities is None else tuple(map(str, capabilities)),
        uuid=None if uuid is None else bytes.fromhex(uuid),
        page_bits_sent=_field(entry, "page_bits_sent", bool),
    )


def _section_entry(number: int, section: DeviceSection) -> dict[str, Any]:
    return {
        "section_id": section.section_id,
        "name": section.name,
        "instance_id": section.instance_id,
        "version": section.version,
        "file": file_name(number, section.name),
    }
