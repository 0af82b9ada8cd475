"""`dir:PATH`: a guest at rest. `guest.json`, one RAM file a block, one file a device section.

`guest.json` is written last and at once, so a directory without it holds no guest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .base import (
    BlockLayout,
    DeviceSection,
    DeviceState,
    Guest,
    GuestError,
    Machine,
    RamBlock,
)

FORMAT = 1


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
        self._made = False
        if self._description_path.exists():
            self._open()

    @property
    def _description_path(self) -> Path:
        return self._path / "guest.json"

    def _open(self) -> None:
        try:
            document = json.loads(self._description_path.read_text())
            if document["format"] != FORMAT:
                raise GuestError(f"{self._description_path}: format {document['format']!r}")
            self._machine = _machine_from(document["machine"])
            self._state = self._state_from(document)
            page_size = self._machine.page_size
            self._blocks = tuple(self._open_block(b, page_size) for b in document["blocks"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise GuestError(f"{self._description_path}: not a guest ({what})") from error

    def _open_block(self, entry: dict[str, Any], page_size: int) -> RamBlock:
        path = self._path / "ram" / Path(entry["file"]).name
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(fd).st_size != entry["length"]:
            os.close(fd)
            raise GuestError(f"{path}: not {entry['length']} bytes, as guest.json says")
        return RamBlock(entry["name"], entry["length"], page_size, fd)

    def _state_from(self, document: dict[str, Any]) -> DeviceState:
        description = document["description"]
        return DeviceState(
            early=tuple(self._section_from(entry) for entry in document["early"]),
            sections=tuple(self._section_from(entry) for entry in document["sections"]),
            description=None if description is None else description.encode(),
            ram_section_id=document["ram_section_id"],
        )

    def _section_from(self, entry: dict[str, Any]) -> DeviceSection:
        path = self._path / "devices" / Path(entry["file"]).name
        return DeviceSection(
            section_id=entry["section_id"],
            name=entry["name"],
            instance_id=entry["instance_id"],
            version=entry["version"],
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

    def save_devices(self) -> DeviceState:
        """The sections as they arrived."""
        if self._state is None:
            raise GuestError(f"{self._path}: no guest here (no guest.json)")
        return self._state

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Sparse RAM files. Raises GuestError when a guest is here already."""
        if self._machine is not None:
            raise GuestError(f"{self._path}: holds a guest already")
        if any((self._path / name).exists() for name in ("ram", "devices")):
            raise GuestError(f"{self._path}: holds 'ram' or 'devices' of something else")
        try:
            (self._path / "ram").mkdir(parents=True)
            self._made = True
            made = []
            for number, block in enumerate(blocks):
                made.append(self._make_block(number, block))
                self._blocks = tuple(made)
        except OSError as error:
            raise GuestError(f"{self._path}: {error.strerror}") from error
        self._machine = machine

    def _make_block(self, number: int, block: BlockLayout) -> RamBlock:
        path = self._path / "ram" / _file_name(number, block.name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, block.length)
        return RamBlock(block.name, block.length, block.page_size, fd)

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Write each section to a file of its own."""
        folder = self._path / "devices"
        folder.mkdir()
        for number, section in enumerate((*state.early, *state.sections)):
            (folder / _file_name(number, section.name)).write_bytes(section.payload)
        self._machine, self._state = machine, state

    def complete(self, *, running: bool) -> None:
        """Write guest.json, at once."""
        temporary = self._path / "guest.json.new"
        temporary.write_text(json.dumps(self._document(running), indent=1))
        temporary.replace(self._description_path)
        self._made = False

    def _document(self, running: bool) -> dict[str, Any]:
        machine, state = self.machine, self.save_devices()
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
                {"name": b.name, "length": b.length, "file": _file_name(number, b.name)}
                for number, b in enumerate(self._blocks)
            ],
            "ram_section_id": state.ram_section_id,
            "early": entries[: len(state.early)],
            "sections": entries[len(state.early) :],
            "description": None if state.description is None else state.description.decode(),
        }

    def abort_incoming(self) -> None:
        """Remove RAM and devices, if this guest made them."""
        self.close()
        if self._made:
            shutil.rmtree(self._path / "ram", ignore_errors=True)
            shutil.rmtree(self._path / "devices", ignore_errors=True)
        self._machine, self._state, self._made = None, None, False

    def close(self) -> None:
        """Close the RAM files."""
        for block in self._blocks:
            os.close(block.fd)
        self._blocks = ()


def _file_name(number: int, name: str) -> str:
    """Names come from streams: nothing in them may leave the folder."""
    return f"{number:03d}-{quote(name, safe='')[:200]}"


def _machine_from(entry: dict[str, Any]) -> Machine:
    capabilities, uuid = entry["capabilities"], entry["uuid"]
    return Machine(
        name=entry["name"],
        page_size=entry["page_size"],
        capabilities=None if capabilities is None else tuple(capabilities),
        uuid=None if uuid is None else bytes.fromhex(uuid),
        page_bits_sent=entry["page_bits_sent"],
    )


def _section_entry(number: int, section: DeviceSection) -> dict[str, Any]:
    return {
        "section_id": section.section_id,
        "name": section.name,
        "instance_id": section.instance_id,
        "version": section.version,
        "file": _file_name(number, section.name),
    }
