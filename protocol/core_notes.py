"""Declarations of the notes of an ELF core that hold a processor's registers: x86-64.

Sources: "ELF-64 Object File Format" (version 1.5) for notes; the x86-64 psABI's and gdb's layout of
NT_PRSTATUS; cores that QEMU's `dump-guest-memory` wrote, for the note of QEMU's own, by which
`crash` finds where a kernel was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

import construct as c  # type: ignore[import-untyped]

NT_PRSTATUS = 1
NT_QEMU = 0

Note = c.Struct(
    "name_size" / c.Rebuild(c.Int32ul, lambda this: len(this.name) + 1),
    "content_size" / c.Rebuild(c.Int32ul, lambda this: len(this.content)),
    "type" / c.Int32ul,
    "name" / c.Aligned(4, c.NullTerminated(c.GreedyBytes)),
    "content" / c.Aligned(4, c.Bytes(c.this.content_size)),
)

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
"""Registers by the numbers that instructions have for them."""
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
"""The same of segments."""

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
"""Of Linux: what a debugger shows. `process`: the processor, counted from 1."""

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
"""Of QEMU."""


def registers(
    number: int,
    plain: Mapping[str, int],
    segments: Mapping[str, Mapping[str, int]],
    control: tuple[int, ...],
    kernel_gs_base: int,
) -> bytes:
    """Both notes of a processor, counted from 0.

    `plain`: GENERAL, rip, rflags; `segments`: SEGMENTS, ldt, tr, gdt, idt, of each selector, limit,
    flags, base; `control`: CR0 to CR4. Raises ValueError where one is no such number.
    """
    selectors = {name: segments[name]["selector"] for name in SEGMENTS}
    bases = {f"{name}_base": segments[name]["base"] for name in ("fs", "gs")}
    whole = {**plain, **selectors, **bases, "process": number + 1, "original_rax": 0}
    state = {**plain, **segments, "cr": control, "kernel_gs_base": kernel_gs_base}
    try:
        contents = PrStatus.build(whole), QemuState.build(state)
    except c.ConstructError as error:
        raise ValueError(f"a register is no number: {error}") from None
    named = ((NT_PRSTATUS, b"CORE"), (NT_QEMU, b"QEMU"))
    return b"".join(
        Note.build({"type": kind, "name": name, "content": content})
        for (kind, name), content in zip(named, contents, strict=True)
    )
