"""Reads a guest's processors from their device state: their type, and their registers as ELF notes.

The fields in the state of a processor were taken from the descriptions of streams of QEMU 7.2 and
10.0, for each target that supports migration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...protocol.devices.fields import Decoder, leaves
from ...protocol.errors import StreamError
from ...protocol.events import Description, DeviceSection
from ...protocol.formats.core_notes import (
    GENERAL,
    SEGMENTS,
    aarch64_registers,
    arm_registers,
    registers,
)
from ...protocol.formats.other_core_notes import (
    powerpc_registers,
    riscv_registers,
    s390_registers,
)
from .table import TARGETS, Target

SECTION_NAME = "cpu"

Values = Mapping[str, Any]
"""The fields of a processor by path."""

AARCH64_ID_REGISTERS = range(0x6030_0000_0013_C020, 0x6030_0000_0013_C040)
"""The numbers in KVM's interface of ID_AA64PFR0_EL1 and the registers after it; they are zero if a
processor does not support AArch64.
"""
ARM_SCTLR = 0x6030_0000_0013_C080
SCTLR_BIG_ENDIAN = 1 << 25
PPC_LPCR = 318
LPCR_LITTLE_ENDIAN = 1 << 25
"""The LPCR bit for interrupts in little-endian order, which a little-endian Linux sets."""
PPC_SPECIAL = {"xer": 1, "link": 8, "ctr": 9}
"""The numbers of the special registers that are part of a program's state."""
MIPS_BIG_ENDIAN = 1 << 15
"""The big-endian bit in CP0's Config register."""


@dataclass(frozen=True)
class Processors:
    """The facts on all processors of a guest.

    `target` is their type (None: not in the stream), `count` their number, `known` the number of
    those with known registers, and `notes` the notes that contain these registers.
    """

    target: Target | None
    count: int
    known: int
    notes: bytes


def look(
    sections: Iterable[DeviceSection], description: Description | None, *, damaged: bool = False
) -> Processors:
    """Read the sections of processors.

    Raises StreamError if one does not match its description, unless the stream is `damaged`.
    """
    decoder = Decoder(description)
    target, count = None, 0
    notes: list[tuple[bytes, bytes]] = []
    for section in sections:
        count += 1
        try:
            fields = leaves(decoder.decode(section))
        except StreamError:
            if not damaged:
                raise
            continue
        values: dict[str, Any] = {path: field.value for path, field in fields}
        try:
            found = _target(values)
            if found is None:
                continue
            target = target or found
            write = _NOTES.get(found.name)
            if write is not None:
                notes.append(write(section.instance_id, values))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            # The description may have any content: these fields are not what their names suggest.
            continue
    order = b"".join(first for first, _ in notes) + b"".join(second for _, second in notes)
    return Processors(target, count, len(notes), order)


def _target(values: Values) -> Target | None:
    """Return the target of a processor with these fields, or None if it is unknown."""
    for mark, find in _MARKS.items():
        if mark in values:
            return find(values)
    return None


def _wide(values: Values, path: str) -> bool:
    """Return whether each register in an array has 64 bits, by the array's dtype."""
    return bool(values[path].dtype.itemsize == 8)


def _arm(values: Values) -> Target:
    """Return AArch64 if the processor is in that state or its identification shows support for it,
    or else Arm.
    """
    found = _arm_registers(values)
    state = _number(values["cpsr"])
    wide = not state & 0x10 or any(found.get(number) for number in AARCH64_ID_REGISTERS)
    little = not found.get(ARM_SCTLR, 0) & SCTLR_BIG_ENDIAN
    return TARGETS["aarch64" if wide and "m" not in _profile(values) else "arm"].of(little)


def _profile(values: Values) -> str:
    """Return "m" for a microcontroller, or else ""."""
    return "m" if any(path.startswith("cpu/m/") for path in values) else ""


def _arm_registers(values: Values) -> dict[int, int]:
    """Return the system registers by number; a microcontroller has none."""
    numbers = values.get("cpreg_vmstate_indexes", ())
    found = values.get("cpreg_vmstate_values", ())
    return dict(zip(map(int, numbers), map(int, found), strict=True))


def _ppc(values: Values) -> Target:
    wide = _wide(values, "env.gpr")
    little = wide and bool(int(values["env.spr"][PPC_LPCR]) & LPCR_LITTLE_ENDIAN)
    return TARGETS["ppc64" if wide else "ppc"].of(little)


def _mips(values: Values) -> Target:
    wide = _wide(values, "env.active_tc/gpr")
    config = int(values["env.CP0_Config0"])
    name = "mips64" if wide else "mips"
    return TARGETS[name if config & MIPS_BIG_ENDIAN else f"{name}el"]


_MARKS: dict[str, Callable[[Values], Target]] = {
    "env.eip": lambda values: TARGETS["x86_64" if _wide(values, "env.regs") else "i386"],
    "env.xregs": _arm,
    "env.nip": _ppc,
    "env.psw.mask": lambda _: TARGETS["s390x"],
    "env.misa_mxl": lambda values: TARGETS["riscv64" if _wide(values, "env.gpr") else "riscv32"],
    "env.CP0_Config0": _mips,
    "env.gregs": lambda values: TARGETS["sparc64" if _wide(values, "env.gregs") else "sparc"],
    "env.dregs": lambda _: TARGETS["m68k"],
}
"""The functions that return the target, by a field that no other processor has."""


def _x86_notes(number: int, values: Values) -> tuple[bytes, bytes]:
    """Return the notes of an x86 processor.

    Raises KeyError, TypeError, ValueError if a register is missing or invalid.
    """
    wide = _wide(values, "env.regs")
    count = len(GENERAL) if wide else len(GENERAL) // 2
    found = [int(value) for value in values["env.regs"]]
    if len(found) != count:
        raise ValueError("another number of registers")
    plain = dict.fromkeys(GENERAL, 0) | dict(zip(GENERAL, found, strict=False))
    plain |= {"rip": values["env.eip"], "rflags": values["env.eflags"]}
    paths = {name: f"env.segs[{index}]" for index, name in enumerate(SEGMENTS)}
    paths |= {name: f"env.{name}" for name in ("ldt", "tr", "gdt", "idt")}
    segments = {
        name: {key: values[f"{path}/{key}"] for key in ("selector", "limit", "flags", "base")}
        for name, path in paths.items()
    }
    # There is no CR1.
    control = (values["env.cr[0]"], 0, *(values[f"env.cr[{number}]"] for number in (2, 3, 4)))
    base = values["env.kernelgsbase"] if wide else 0
    return registers(
        number,
        plain,
        segments=segments,
        control=control,
        kernel_gs_base=base,
        bits=64 if wide else 32,
    )


def _arm_notes(number: int, values: Values) -> tuple[bytes, bytes]:
    floats = None
    if "cpu/vfp/fpscr" in values:
        found = _vectors(values)
        # 16 registers of 128 bits are 32 of 64.
        doubles = [half for pair in found[:16] for half in pair]
        floats = doubles, _number(values["cpu/vfp/fpscr"])
    general = [int(value) for value in values["env.regs"]]
    return arm_registers(number, general, _number(values["cpsr"]), floats), b""


def _aarch64_notes(number: int, values: Values) -> tuple[bytes, bytes]:
    general = [int(value) for value in values["env.xregs"]]
    floats = [half for pair in _vectors(values) for half in pair]
    state = _number(values["cpsr"]), _number(values["cpu/vfp/fpscr"])
    return aarch64_registers(number, general, values["env.pc"], state[0], (floats, state[1])), b""


def _vectors(values: Values) -> list[tuple[int, int]]:
    """Return the 128-bit registers, each as two halves of which the low one is first."""
    found = (values[f"cpu/vfp/env.vfp.zregs[{index}].d"] for index in range(32))
    return [(int(low), int(high)) for low, high, *_ in found]


def _number(value: Any) -> int:
    """Return the number in a field with its own type in the description; such fields are
    big-endian.
    """
    return int.from_bytes(bytes(value), "big")


def _riscv_notes(number: int, values: Values) -> tuple[bytes, bytes]:
    bits = 64 if _wide(values, "env.gpr") else 32
    general = [int(value) for value in values["env.gpr"]]
    return riscv_registers(number, general[1:], values["env.pc"], bits), b""


def _ppc_notes(number: int, values: Values) -> tuple[bytes, bytes]:
    special = {name: int(values["env.spr"][at]) for name, at in PPC_SPECIAL.items()}
    condition = 0
    for field in values["env.crf"]:
        condition = condition << 4 | int(field)
    named = {**special, "nip": values["env.nip"], "msr": values["env.msr"], "ccr": condition}
    floats = [_number(values.get(f"cpu/fpu/env.vsr[{index}]", b"")) for index in range(32)]
    return (
        powerpc_registers(
            number,
            [int(value) for value in values["env.gpr"]],
            named,
            (floats, values.get("cpu/fpu/env.fpscr", 0)),
            bits=64 if _wide(values, "env.gpr") else 32,
            little=_ppc(values).processor.little,
        ),
        b"",
    )


def _s390_notes(number: int, values: Values) -> tuple[bytes, bytes]:
    def half(index: int, which: int) -> int:
        kind = "fpu" if index < 16 and not which else "vregs"
        return int(values[f"cpu/{kind}/env.vregs[{index}][{which}]"])

    status = {
        "mask": values["env.psw.mask"],
        "address": values["env.psw.addr"],
        "general": [int(value) for value in values["env.regs"]],
        "access": [int(value) for value in values["env.aregs"]],
    }
    paths = {"prefix": "psa", "timer": "cputm", "comparator": "ckc", "programmable": "todpr"}
    system = {name: int(values[f"env.{path}"]) for name, path in paths.items()}
    vectors = None
    if "cpu/vregs/env.vregs[16][0]" in values:
        high = [half(index, which) for index in range(16, 32) for which in (0, 1)]
        vectors = [half(index, 1) for index in range(16)], high
    floats = [half(index, 0) for index in range(16)]
    control = [int(value) for value in values["env.cregs"]]
    fpc = values["cpu/fpu/env.fpc"]
    note = s390_registers(
        number,
        status=status,
        floats=floats,
        fpc=fpc,
        system=system,
        control=control,
        vectors=vectors,
    )
    return note, b""


_NOTES: dict[str, Callable[[int, Values], tuple[bytes, bytes]]] = {
    "i386": _x86_notes,
    "x86_64": _x86_notes,
    "arm": _arm_notes,
    "aarch64": _aarch64_notes,
    "ppc": _ppc_notes,
    "ppc64": _ppc_notes,
    "riscv32": _riscv_notes,
    "riscv64": _riscv_notes,
    "s390x": _s390_notes,
}
"""The functions that write the notes, by target."""
