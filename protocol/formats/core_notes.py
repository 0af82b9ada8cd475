"""Declare and build the notes of an ELF core that hold a processor's registers: x86 and Arm.

Sources: "ELF-64 Object File Format" (version 1.5) for notes; the psABIs of i386, x86-64, AArch32
and AArch64, and gdb's layouts of NT_PRSTATUS, NT_FPREGSET and NT_ARM_VFP; the Arm Architecture
Reference Manual for FPSCR; cores written by QEMU's `dump-guest-memory` for QEMU's own note, from
which `crash` learns where a kernel was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import construct as c  # type: ignore[import-untyped]

NT_PRSTATUS = 1
NT_FPREGSET = 2
NT_QEMU = 0
NT_ARM_VFP = 0x400


def note_in(number: c.Construct) -> c.Construct:
    """Return the declaration of a note whose sizes and type are such numbers of 32 bits."""
    return c.Struct(
        "name_size" / c.Rebuild(number, lambda this: len(this.name) + 1),
        "content_size" / c.Rebuild(number, lambda this: len(this.content)),
        "type" / number,
        "name" / c.Aligned(4, c.NullTerminated(c.GreedyBytes)),
        "content" / c.Aligned(4, c.Bytes(c.this.content_size)),
    )


Note = note_in(c.Int32ul)
NoteBigEndian = note_in(c.Int32ub)

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
"""General registers of x86-64, in the order of their numbers in instructions."""
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
"""Segment registers of x86, in the order of their numbers in instructions."""

PrStatus = c.Struct(
    c.Padding(32),
    "process" / c.Int32ul,
    c.Padding(76),
    *(
        name / c.Int64ul
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
            *("rax", "rcx", "rdx", "rsi", "rdi", "original_rax", "rip", "cs", "rflags"),
            *("rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    ),
    c.Padding(8),
)
"""NT_PRSTATUS of Linux on x86-64, which a debugger shows; `process`: the processor, from 1 on."""

PrStatus32 = c.Struct(
    c.Padding(24),
    "process" / c.Int32ul,
    c.Padding(44),
    *(
        name / c.Int32ul
        for name in (
            *("rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rax", "ds", "es", "fs", "gs"),
            *("original_rax", "rip", "cs", "rflags", "rsp", "ss"),
        )
    ),
    c.Padding(4),
)
"""NT_PRSTATUS of Linux on i386; registers have the names of x86-64."""

PrStatusArm = c.Struct(
    c.Padding(24),
    "process" / c.Int32ul,
    c.Padding(44),
    "registers" / c.Int32ul[16],
    "cpsr" / c.Int32ul,
    "original_r0" / c.Const(0, c.Int32ul),
    "floats_follow" / c.Int32ul,
)
"""NT_PRSTATUS of Linux on 32-bit Arm."""

PrStatusAArch64 = c.Struct(
    c.Padding(32),
    "process" / c.Int32ul,
    c.Padding(76),
    "registers" / c.Int64ul[32],
    "pc" / c.Int64ul,
    "pstate" / c.Int64ul,
    "floats_follow" / c.Const(1, c.Int32ul),
    c.Padding(4),
)
"""NT_PRSTATUS of Linux on AArch64; the last of the 32 registers is SP."""

VfpArm = c.Struct("registers" / c.Int64ul[32], "fpscr" / c.Int32ul)
FloatsAArch64 = c.Struct(
    "registers" / c.Int64ul[64], "fpsr" / c.Int32ul, "fpcr" / c.Int32ul, c.Padding(8)
)
"""NT_FPREGSET of AArch64; each of the 32 registers is two numbers, the low one first."""
FPSR_BITS, FPCR_BITS = 0xF800_009F, 0x07FF_9F00
"""The bits of FPSCR that are FPSR and FPCR in AArch64."""

_Segment = c.Struct(
    *(name / c.Int32ul for name in ("selector", "limit", "flags")), c.Padding(4), "base" / c.Int64ul
)

QemuState = c.Struct(
    "version" / c.Const(1, c.Int32ul),
    "size" / c.Const(440, c.Int32ul),
    *(name / c.Int64ul for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp")),
    *(f"r{number}" / c.Int64ul for number in range(8, 16)),
    *("rip" / c.Int64ul, "rflags" / c.Int64ul),
    *(name / _Segment for name in ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")),
    "cr" / c.Int64ul[5],
    "kernel_gs_base" / c.Int64ul,
)
"""QEMU's own note for a processor, x86 of 32 and 64 bits."""


def registers(
    number: int,
    plain: Mapping[str, int],
    *,
    segments: Mapping[str, Mapping[str, int]],
    control: tuple[int, ...],
    kernel_gs_base: int,
    bits: int = 64,
) -> tuple[bytes, bytes]:
    """Return both notes of an x86 processor.

    A core has the first note of every processor before the second ones. `number`: the processor,
    from 0 on; `bits`: 32 or 64, those of a word. `plain`: GENERAL, rip, rflags; `segments`:
    SEGMENTS, ldt, tr, gdt, idt, each with selector, limit, flags, base; `control`: CR0 to CR4.
    Raises ValueError if a value does not fit its field.
    """
    selectors = {name: segments[name]["selector"] for name in SEGMENTS}
    bases = {f"{name}_base": segments[name]["base"] for name in ("fs", "gs")}
    whole = {**plain, **selectors, **bases, "process": number + 1, "original_rax": 0}
    state = {**plain, **segments, "cr": control, "kernel_gs_base": kernel_gs_base}
    status = PrStatus if bits == 64 else PrStatus32
    return note(NT_PRSTATUS, b"CORE", status, whole), note(NT_QEMU, b"QEMU", QemuState, state)


def arm_registers(
    number: int,
    general: Sequence[int],
    cpsr: int,
    floats: tuple[Sequence[int], int] | None,
) -> bytes:
    """Return the notes of a 32-bit Arm processor; `number` counts processors from 0.

    `general`: R0 to R15; `floats`: 32 registers of 64 bits, and FPSCR; None if it has none. Raises
    ValueError if a value does not fit its field.
    """
    follow = int(floats is not None)
    plain = {
        "process": number + 1,
        "registers": general,
        "cpsr": cpsr,
        "floats_follow": follow,
    }
    notes = note(NT_PRSTATUS, b"CORE", PrStatusArm, plain)
    if floats is not None:
        found = {"registers": floats[0], "fpscr": floats[1]}
        notes += note(NT_ARM_VFP, b"LINUX", VfpArm, found)
    return notes


def aarch64_registers(
    number: int, general: Sequence[int], pc: int, pstate: int, floats: tuple[Sequence[int], int]
) -> bytes:
    """Return the notes of an AArch64 processor; `number` counts processors from 0.

    `general`: X0 to X30 and SP; `floats`: 32 registers of two 64-bit numbers each, one after the
    other, and FPSCR. Raises ValueError if a value does not fit its field.
    """
    plain = {"process": number + 1, "registers": general, "pc": pc, "pstate": pstate}
    fpsr, fpcr = floats[1] & FPSR_BITS, floats[1] & FPCR_BITS
    vectors = {"registers": floats[0], "fpsr": fpsr, "fpcr": fpcr}
    status = note(NT_PRSTATUS, b"CORE", PrStatusAArch64, plain)
    return status + note(NT_FPREGSET, b"CORE", FloatsAArch64, vectors)


def note(
    kind: int,
    name: bytes,
    declared: c.Construct,
    values: Mapping[str, object],
    *,
    little: bool = True,
) -> bytes:
    """Return a note with these values in the layout `declared`, in the byte order of the processor.

    Raises ValueError if a value does not fit its field.
    """
    try:
        content = declared.build(values)
    except c.ConstructError as error:
        raise ValueError(f"a register is no number: {error}") from None
    made = Note if little else NoteBigEndian
    found: bytes = made.build({"type": kind, "name": name, "content": content})
    return found
