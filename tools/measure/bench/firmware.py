"""A guest of a few instructions for QEMU: firmware that writes a hot set of RAM at a given rate.

It takes the place of a BIOS. The processor stays in real mode, with one segment that reaches 4 GiB.
The timer wakes it some 200 times a second; it counts that as a beat, and writes the pages that are
due by the clock into the hot set, one after the other and then from the start again. As in a
synthetic guest, a write of the pattern `sparse` changes a few words of a page, and what a busy
machine missed for too long is skipped. In between the processor sleeps, so that the guest takes no
time from the migration.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PAGE_SIZE = 4096
HOT_START = 16 << 20
"""The address of the first page that the guest writes."""

_SIZE = 1 << 16
_CODE, _DATA = 0x7C00, 0x7D80
"""Addresses in RAM of the code, which the firmware copies there, and of what it works with."""
_TIMER = 1193182 // 200
"""The ticks of the timer from one beat to the next."""
_CLOCK = 100_000_000
"""The ticks of the clock, QEMU's HPET, in a second."""
_BACKLOG = _CLOCK // 10
"""Longest time, in ticks of the clock, for which writes are caught up."""
_NEVER = 0xFFFFFFFF
"""Ticks of the clock from one page to the next, if no page is written."""

_FIELDS = ("timer", "start", "end", "each", "backlog", "until", "beats", "written")
"""Names of the guest's variables, in the order in which they are in its memory.

Ticks of the timer; start and end of the hot set; ticks of the clock from one page to the next, and
of the backlog; when the last page was due; the beats and the pages written, which it counts.
"""
_PARAMETERS = struct.Struct(f"<{len(_FIELDS)}I")
_COUNTERS = struct.Struct("<II")

LOW = _DATA + _PARAMETERS.size
"""The size in bytes of the RAM in which the guest counts."""

_COPY = bytes.fromhex(
    "fafc31c08ec0"  # cli; cld; xor ax, ax; mov es, ax
    "b800f08ed8"  # mov ax, 0xf000; mov ds, ax
    "be0001bf007cb90002f3a4"  # mov si, 0x100; mov di, 0x7c00; mov cx, 0x200; rep movsb
    "ea007c0000"  # jmp 0:0x7c00
)
_COPIED = 0x100
"""Offset in the firmware at which the workload, which is copied to RAM, begins."""
_RESET = bytes.fromhex("ea000000f0")  # jmp 0xf000:0

_WORKLOAD = """
    31c0 8ed8 8ed0 bc007c           ; xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7c00
    c7062000 @beat c70622000000     ; mov word [0x20], beat; mov word [0x22], 0
    660f0116 @table                 ; lgdt [table]
    0f20c0 0c01 0f22c0              ; mov eax, cr0; or al, 1; mov cr0, eax
    bb0800 8ec3                     ; mov bx, 8; mov es, bx
    24fe 0f22c0                     ; and al, 0xfe; mov cr0, eax
    266766c705 f000e0fe ff010000    ; mov dword es:[0xfee000f0], 0x1ff: the local APIC is on,
    266766c705 5003e0fe 00070000    ; mov dword es:[0xfee00350], 0x700: and passes interrupts on
    266766c705 1000d0fe 01000000    ; mov dword es:[0xfed00010], 1: the clock runs
    b011e620 b008e621 b004e621 b001e621  ; the interrupt controller: from 8 on, 8086 mode
    b0fee621 b0ffe6a1               ; it lets the timer through, nothing else
    b034e643                        ; the timer: a pulse again and again
    a1 @timer e640 88e0 e640        ; mov ax, [timer]; out 0x40, al; mov al, ah; out 0x40, al
    668b3e @start fb                ; mov edi, [start]; sti
sleep:
    f4                              ; hlt
    66ff06 @beats                   ; inc dword [beats]
    2667668b15 f000d0fe             ; mov edx, es:[0xfed000f0]: the time
look:
    6689d0 662b06 @until            ; mov eax, edx; sub eax, [until]
    663b06 @backlog 76 >due         ; cmp eax, [backlog]; jbe due
    668916 @until eb >look          ; mov [until], edx; jmp look
due:
    663b06 @each 72 >sleep          ; cmp eax, [each]; jb sleep
    66a1 @each 660106 @until        ; mov eax, [each]; add [until], eax
    66ff06 @written 66a1 @written   ; inc dword [written]; mov eax, [written]
    266766894708                    ; mov es:[edi + 8], eax
    6689c3 6681e3f80f0000           ; mov ebx, eax; and ebx, 0xff8
    26676689041f                    ; mov es:[edi + ebx], eax
    2667668987f80f0000              ; mov es:[edi + 0xff8], eax
    6681c700100000                  ; add edi, 0x1000
    663b3e @end 72 >look            ; cmp edi, [end]; jb look
    668b3e @start eb >look          ; mov edi, [start]; jmp look
beat:
    50 b020 e620 58 cf              ; push ax; mov al, 0x20; out 0x20, al; pop ax; iret
descriptors:
    0000000000000000                ; none
    ffff00000092cf00                ; data, 4 GiB
table:
    0f00 @descriptors 0000          ; limit and place of the descriptors
"""


@dataclass(frozen=True)
class Beats:
    """The counters of the guest: how often it woke up, and the pages that it wrote."""

    beats: int
    written: int


def _assemble(source: str) -> bytes:
    """Return the code of lines with `label:`, code in hex, `@label` (its address in two bytes) and
    `>label` (the way from here to it in one byte), each with a comment behind `;`.
    """
    labels = {name: _DATA + 4 * index for index, name in enumerate(_FIELDS)}
    words = [word for line in source.splitlines() for word in line.partition(";")[0].split()]
    code = b""
    # The first pass finds the labels that are behind their first use.
    for _ in range(2):
        code = b""
        for word in words:
            here, target = _CODE + len(code), labels.get(word[1:], _CODE)
            if word.endswith(":"):
                labels[word[:-1]] = here
            elif word.startswith("@"):
                code += struct.pack("<H", target)
            elif word.startswith(">"):
                code += struct.pack("<B", target - here - 1 & 0xFF)
            else:
                code += bytes.fromhex(word)
    return code


def firmware(hot: int, rate: int) -> bytes:
    """Return firmware whose guest writes `rate` bytes a second into `hot` bytes of RAM."""
    each = round(_CLOCK * PAGE_SIZE / rate) if rate else _NEVER
    end = HOT_START + max(PAGE_SIZE, hot // PAGE_SIZE * PAGE_SIZE)
    data = _PARAMETERS.pack(_TIMER, HOT_START, end, min(each, _NEVER), _BACKLOG, 0, 0, 0)
    code = _assemble(_WORKLOAD).ljust(_DATA - _CODE, b"\0") + data
    start = _COPY.ljust(_COPIED, b"\0") + code
    return start.ljust(_SIZE - 16, b"\0") + _RESET.ljust(16, b"\0")


def read_beats(low: bytes) -> Beats:
    """Return what the guest has counted; `low` is the beginning of its RAM, `LOW` bytes."""
    return Beats(*_COUNTERS.unpack_from(low, LOW - _COUNTERS.size))
