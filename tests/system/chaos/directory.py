"""Check what a folder holds of a `dir:` guest that was to arrive there, and whether its RAM is
right.

The device state of a synthetic guest is a table that says what each page must hold, so a folder
proves by itself that its RAM is the source's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vmferry.guest.synthetic_memory import PAGE_SIZE, Memory
from vmferry.guest.synthetic_state import unpack


@dataclass(frozen=True)
class RestState:
    """`whole`: the folder holds a guest. `kept`: a complete one that waits to be taken up.

    `damage`: what is wrong with it, in one line.
    """

    whole: bool = False
    kept: bool = False
    damage: str = ""


def at_rest(folder: Path, *, synthetic: bool = True) -> RestState:
    """Look at the folder of a guest; what only a synthetic one has is checked if it is one."""
    for name, whole in (("guest.json", True), ("guest.json.new", False)):
        path = folder / name
        if path.exists():
            try:
                document = json.loads(path.read_text())
                damage = _missing(folder, document)
                damage = damage or (_damage(folder, document) if synthetic else "")
            except (OSError, ValueError, KeyError) as error:
                damage = f"{name}: {error}"
            if whole or not damage:
                return RestState(whole, not whole, damage if whole else "")
    return RestState()


def _missing(folder: Path, document: dict[str, Any]) -> str:
    for block in document["blocks"]:
        path = folder / "ram" / block["file"]
        if not path.exists() or path.stat().st_size != block["length"]:
            return f"{path.name} is missing, or has another length"
    for section in (*document["early"], *document["sections"]):
        if not (folder / "devices" / section["file"]).exists():
            return f"{section['file']} is missing"
    return ""


def _damage(folder: Path, document: dict[str, Any]) -> str:
    blocks, sections = document["blocks"], document["sections"]
    paths = [folder / "ram" / block["file"] for block in blocks]
    ram, rom = (np.fromfile(path, np.uint8) for path in paths)
    state = (folder / "devices" / sections[0]["file"]).read_bytes()
    found = unpack(state, len(ram) // PAGE_SIZE)
    memory = Memory(ram, rom, found.seed, found.pattern)
    memory.table[:] = found.table
    bad = memory.check_all()
    return f"{len(bad)} pages are wrong, the first: {bad[0]}" if bad else ""
