"""Registers of processors in an ELF core."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.formats.core_notes import Note, PrStatus, QemuState
from vmferry.protocol.formats.memory_image import ElfHeader, ProgramHeader

from tests import streams


def program_headers(data: bytes) -> list[Any]:
    """Return the program headers of an ELF file."""
    header = ElfHeader.parse(data)
    size, count = ProgramHeader.sizeof(), header.program_header_count
    starts = range(header.program_headers, header.program_headers + count * size, size)
    return [ProgramHeader.parse(data[start:]) for start in starts]


REGISTERS = {"env.regs": (8, 16), "env.eip": (8, 1), "env.eflags": (8, 1)}
SEGMENT = {"selector": (4, 1), "base": (8, 1), "limit": (4, 1), "flags": (4, 1)}


def _processor() -> tuple[events.DeviceSection, list[dict[str, Any]]]:
    """Return a processor like QEMU's of x86-64 with registers numbered from 1, and its fields."""
    counter = itertools.count(1)
    payload = b""

    def entries(fields: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
        nonlocal payload
        found = []
        for name, (size, count) in fields.items():
            payload += b"".join(next(counter).to_bytes(size, "big") for _ in range(count))
            array = {"array_len": count} if count > 1 else {}
            found.append({"name": name, "type": f"uint{size * 8}", "size": size, **array})
        return found

    fields = entries(REGISTERS)
    for name in [*["env.segs"] * 6, "env.ldt", "env.tr", "env.gdt", "env.idt"]:
        inner = {"vmsd_name": "segment", "version": 1, "fields": entries(SEGMENT)}
        fields.append({"name": name, "type": "struct", "size": 20, "struct": inner})
    fields += entries({f"env.cr[{number}]": (8, 1) for number in (0, 2, 3, 4)})
    fields += entries({"env.kernelgsbase": (8, 1)})
    return streams.device(3, "cpu", payload), fields


def _core_of(
    vmferry: Any, cpu: events.DeviceSection, fields: list[dict[str, Any]]
) -> tuple[bytes, int]:
    """Return the ELF core of a guest with this processor, and how many registers were reported."""
    device = {"name": "cpu", "instance_id": 0, "vmsd_name": "cpu", "version": 1, "fields": fields}
    described = streams.description_of({"page_size": 4096, "devices": [device]})
    made = [*streams.opening(), *streams.zeros(), *streams.closing([cpu])[:-1], described]
    feed = streams.to_bytes(made)
    out = vmferry.folder / "core"
    ran = vmferry.call("extract", "-", "-o", str(out), "--format", "elf", "--json", feed=feed)
    assert ran.exit_code == 0, ran.output
    return out.read_bytes(), json.loads(ran.stdout)["processors"]


def test_registers(vmferry: Any) -> None:
    """Broken: a debugger would show a register's value as that of another."""
    data, count = _core_of(vmferry, *_processor())
    assert count == 1
    note = program_headers(data)[0]
    raw = io.BytesIO(data[note.offset : note.offset + note.file_size])
    status, state = (Note.parse_stream(raw) for _ in range(2))
    assert raw.read() == b""
    assert [(each.name, each.type) for each in (status, state)] == [(b"CORE", 1), (b"QEMU", 0)]
    shown, whole = PrStatus.parse(status.content), QemuState.parse(state.content)
    assert len(status.content) == 336
    for found in (shown, whole):
        general = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r15")
        assert [found[name] for name in general] == [*range(1, 10), 16]
        assert (found.rip, found.rflags) == (17, 18)
    order = ("es", "cs", "ss", "ds", "fs", "gs")
    assert [shown[name] for name in order] == [*range(19, 43, 4)]
    assert (shown.fs_base, shown.gs_base, shown.process) == (36, 40, 1)
    names = [*order, "ldt", "tr", "gdt", "idt"]
    for name, first in zip(names, range(19, 59, 4), strict=True):
        found = [whole[name][key] for key in ("selector", "base", "limit", "flags")]
        assert found == [*range(first, first + 4)]
    assert (list(whole.cr), whole.kernel_gs_base) == ([59, 0, 60, 61, 62], 63)


@pytest.mark.parametrize("change", [{"name": "env.pc"}, {"type": "buffer"}, {"type": "int64"}])
def test_no_registers(vmferry: Any, change: dict[str, Any]) -> None:
    """Broken: a processor that is not x86-64, or a lying description, would end the command."""
    cpu, fields = _processor()
    fields[-1] = {**fields[-1], **change}
    # All bits set: a negative number, where it is signed.
    cpu = replace(cpu, payload=b"\xff" * len(cpu.payload))
    assert _core_of(vmferry, cpu, fields)[1] == 0
