"""Add the firmware to a command line: flash drives, or a BIOS of unusual size."""

from __future__ import annotations

import re

from .draft import Draft

FIRMWARE_SIZES = (128 << 10, 256 << 10)
"""The usual sizes of a PC's BIOS in bytes; they depend on its age."""

_SHOWN = ("pc", "q35", "isapc", "microvm")
"""The families of machines that do not start without a firmware, which QEMU has for them."""


def add_firmware(draft: Draft) -> None:
    """Add the firmware that the RAM blocks show."""
    if draft.family_name not in _SHOWN:
        draft.say(
            "-bios, -kernel: the stream does not have them: say what the source had, if it had."
        )
    for block in draft.told.blocks:
        number = re.fullmatch(r"system\.flash([01])", block.name)
        if number is not None:
            draft.used.add(block.name)
            name = f"flash{number[1]}"
            drive = f"if=pflash,unit={number[1]},format=raw,file={name}"
            draft.add("-drive", drive + (",readonly=on" if number[1] == "0" else ""))
            draft.say(f"{name}: a file of {block.length} bytes; the stream has its content.")
        elif block.name == "pc.bios" and draft.family_name in ("pc", "q35", "isapc"):
            draft.used.add(block.name)
            if block.length not in FIRMWARE_SIZES:
                draft.say(f"-bios: a file of {block.length} bytes.")
