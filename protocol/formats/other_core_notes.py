"""Declare and build the notes of an ELF core for processors of RISC-V, PowerPC and s390x.

Sources: the psABIs of these processors and gdb's layouts of NT_PRSTATUS, NT_FPREGSET and the notes
of s390x; cores written by QEMU's `dump-guest-memory`, which have the same notes in this order.
"""

from __future__ import annotations

from collections.abc import Sequence

import construct as c  # type: ignore[import-untyped]

from .core_notes import NT_FPREGSET, NT_PRSTATUS, note

NT_S390_TIMER = 0x301
NT_S390_TODCMP = 0x302
NT_S390_TODPREG = 0x303
NT_S390_CTRS = 0x304
NT_S390_PREFIX = 0x305
NT_S390_VXRS_LOW = 0x309
NT_S390_VXRS_HIGH = 0x30A


def _status(bits: int, little: bool, *registers: c.Subconstruct) -> c.Construct:
    """Return the declaration of NT_PRSTATUS with these registers; `process`: from 1 on."""
    process = c.Int32ul if little else c.Int32ub
    before, between = {32: (24, 44), 64: (32, 76)}[bits]
    return c.Struct(
        c.Padding(before),
        "process" / process,
        c.Padding(between),
        *registers,
        c.Padding(bits // 8),
    )


def _word(bits: int, little: bool) -> c.Construct:
    return {
        (32, True): c.Int32ul,
        (32, False): c.Int32ub,
        (64, True): c.Int64ul,
        (64, False): c.Int64ub,
    }[bits, little]


def riscv_registers(number: int, general: Sequence[int], pc: int, bits: int) -> bytes:
    """Return the note of a RISC-V processor; `number` counts processors from 0.

    `general`: X1 to X31. Raises ValueError if a value does not fit its field.
    """
    word = _word(bits, True)
    layout = _status(bits, True, "pc" / word, "general" / word[31])
    values = {"process": number + 1, "pc": pc, "general": general}
    return note(NT_PRSTATUS, b"CORE", layout, values)


def powerpc_registers(
    number: int,
    general: Sequence[int],
    named: dict[str, int],
    floats: tuple[Sequence[int], int],
    *,
    bits: int,
    little: bool,
) -> bytes:
    """Return the notes of a PowerPC processor; `number` counts processors from 0.

    `general`: R0 to R31; `named`: nip, msr, ctr, link, xer, ccr; `floats`: 32 registers of 64 bits,
    and FPSCR. Raises ValueError if a value does not fit its field.
    """
    word = _word(bits, little)
    layout = _status(
        bits,
        little,
        "general" / word[32],
        *("nip" / word, "msr" / word, c.Padding(bits // 8)),
        *(name / word for name in ("ctr", "link", "xer", "ccr")),
        # What Linux notes of an interrupt.
        c.Padding(9 * bits // 8),
    )
    status = {**named, "process": number + 1, "general": general}
    double = c.Int64ul if little else c.Int64ub
    fpscr = c.Struct("registers" / double[32], "fpscr" / word)
    values = {"registers": floats[0], "fpscr": floats[1]}
    return note(NT_PRSTATUS, b"CORE", layout, status, little=little) + note(
        NT_FPREGSET, b"CORE", fpscr, values, little=little
    )


_S390_STATUS = _status(
    64,
    False,
    *("mask" / c.Int64ub, "address" / c.Int64ub),
    *("general" / c.Int64ub[16], "access" / c.Int32ub[16]),
    c.Padding(8),
)
_S390_FLOATS = c.Struct("control" / c.Int32ub, c.Padding(4), "registers" / c.Int64ub[16])
_DOUBLE = c.Struct("value" / c.Int64ub)
_SINGLE = c.Struct("value" / c.Int32ub)


def s390_registers(
    number: int,
    *,
    status: dict[str, object],
    floats: Sequence[int],
    fpc: int,
    system: dict[str, int],
    control: Sequence[int],
    vectors: tuple[Sequence[int], Sequence[int]] | None,
) -> bytes:
    """Return the notes of an s390x processor; `number` counts processors from 0.

    `status`: mask, address, general (16), access (16); `system`: prefix, timer, comparator,
    programmable; `control`: CR0 to CR15; `vectors`: the lower halves of V0 to V15, and V16 to V31
    in two halves each, the upper one first; None if it has none. Raises ValueError if a value does
    not fit its field.
    """

    def linux(kind: int, layout: c.Construct, value: object) -> bytes:
        return note(kind, b"LINUX", layout, {"value": value}, little=False)

    found = note(
        NT_PRSTATUS, b"CORE", _S390_STATUS, {**status, "process": number + 1}, little=False
    )
    values = {"control": fpc, "registers": floats}
    found += note(NT_FPREGSET, b"CORE", _S390_FLOATS, values, little=False)
    found += linux(NT_S390_PREFIX, _SINGLE, system["prefix"])
    found += linux(NT_S390_CTRS, c.Struct("value" / c.Int64ub[16]), control)
    found += linux(NT_S390_TIMER, _DOUBLE, system["timer"])
    found += linux(NT_S390_TODCMP, _DOUBLE, system["comparator"])
    found += linux(NT_S390_TODPREG, _SINGLE, system["programmable"])
    if vectors is not None:
        found += linux(NT_S390_VXRS_LOW, c.Struct("value" / c.Int64ub[16]), vectors[0])
        found += linux(NT_S390_VXRS_HIGH, c.Struct("value" / c.Int64ub[32]), vectors[1])
    return found
