"""Guests of a real QEMU that say on their serial port, with a number, that they run.

`boot` is a boot sector: it fills its memory once, half of each page at random, and then writes
1024 pages and the next number 18 times a second. `linux` is Linux with busybox: it writes a number
each time that the checksums of its files are what they were, and another file all the time. A
QEMU 7.2 under TCG loses some of what such a guest writes as it migrates, also without relays, so
the guest needs a later one at its source.

Every byte goes to the serial port once, so what the ports of source and destination hold, one
after the other, is what one machine would have written that nobody moved.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.linux import initramfs
from tests.patience import PATIENCE
from tests.qemu.machine import BareMachine, missing, qemu_command

MIB = 1 << 20
KINDS = ("boot", "linux")
SIZES = {"boot": 48 * MIB, "linux": 128 * MIB}
_STATIC = slice(2 * MIB, 42 * MIB)
"""The memory of a boot guest that it does not write again."""

# 16-bit code, with a data segment that has no limit ("unreal mode").
_NUMBERS = bytes.fromhex(
    "fa31c08ed88ed0bc007c"  # cli; xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7c00
    "660f0116c07c"  # lgdt [0x7cc0]
    "0f20c00c010f22c0"  # mov eax, cr0; or al, 1; mov cr0, eax
    "bb08008ec3"  # mov bx, 8; mov es, bx
    "24fe0f22c0"  # and al, 0xfe; mov cr0, eax
    "31db8ec3"  # xor bx, bx; mov es, bx
    "6631c9"  # xor ecx, ecx
    "66bf0000200066b801000000"  # mov edi, 0x200000; mov eax, 1
    "6689c366c1e30d6631d8"  # mov ebx, eax; shl ebx, 13; xor eax, ebx  <- fill
    "6689c366c1eb116631d8"  # mov ebx, eax; shr ebx, 17; xor eax, ebx
    "6689c366c1e3056631d8"  # mov ebx, eax; shl ebx, 5; xor eax, ebx
    "2667668907"  # mov es:[edi], eax
    "6683c704f7c7ff0775d3"  # add edi, 4; test di, 0x7ff; jnz fill
    "6681c700080000"  # add edi, 0x800
    "6681ff0000a00275c3"  # cmp edi, 0x2a00000; jne fill
    "fb"  # sti
    "f46641"  # hlt; inc ecx                      <- next
    "66bf0000a002"  # mov edi, 0x2a00000
    "266766890f"  # mov es:[edi], ecx                <- page
    "6681c700100000"  # add edi, 0x1000
    "6681ff0000e00275eb"  # cmp edi, 0x2e00000; jne page
    "baf803bb0800"  # mov dx, 0x3f8; mov bx, 8
    "66c1c10488c8240f0430"  # rol ecx, 4; mov al, cl; and al, 15; add al, '0'  <- digit
    "3c3976020407ee"  # cmp al, '9'; jbe + 2; add al, 7; out dx, al
    "4b75ec"  # dec bx; jnz digit
    "b00aee"  # mov al, 10; out dx, al
    "ebc3"  # jmp next
    "0000000000000000ffff00000092cf00"  # descriptors: none; data, 4 GiB
    "0f00b07c0000"  # limit and place of the descriptors
)

_INIT = b"""#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=100m tmp /tmp
exec >/dev/ttyS0 2>&1
for name in a b c d; do dd if=/dev/urandom of=/tmp/$name bs=1M count=2 2>/dev/null; done
cd /tmp && md5sum a b c d >sums
while true; do
    for name in a b; do dd if=$name of=e bs=64k conv=notrunc 2>/dev/null; sleep 0.05; done
done &
number=0
while true; do
    number=$((number + 1))
    if md5sum -c sums >/dev/null 2>&1; then echo "BEAT $number ok"; else echo "BEAT $number BAD"; fi
    sleep 0.1
done
"""
_BOOT_LINE = re.compile(rb"^([0-9A-F]{8})$", re.MULTILINE)
_LINUX_LINE = re.compile(rb"^BEAT (\d+) (ok|BAD)\r?$", re.MULTILINE)
_TROUBLE = ("BUG:", "Kernel panic", "Oops")
"""Words of a kernel that cannot go on."""


def beats(said: bytes) -> list[int]:
    """Return the numbers that a guest of either kind has said; a bad checksum is -1."""
    found = [int(digits, 16) for digits in _BOOT_LINE.findall(said)]
    return found or [
        int(digits) if state == b"ok" else -1 for digits, state in _LINUX_LINE.findall(said)
    ]


def wait_until(condition: Callable[[], bool], otherwise: str, every: float = 0.05) -> None:
    """Wait for what must come; look `every` so many seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(every)


class Guest(BareMachine):
    """A QEMU with a guest of one of KINDS, at the beginning or as `-incoming` says."""

    def __init__(
        self,
        kind: str,
        version: str,
        folder: Path,
        *options: str,
        machine: str = "",
        memory: str = "memory-backend-memfd",
        size: int | None = None,
    ) -> None:
        folder.mkdir()
        self.kind = kind
        self.serial = folder / "serial"
        command, environment = qemu_command(version)
        size = size or SIZES[kind]
        chosen = (machine,) if machine else ()
        memory = f"{memory},id=ram,size={size},share=on"
        # What QEMU says of a migration that fails belongs to the run, not to whoever reads of it.
        quiet = ["sh", "-c", f'exec "$@" 2>{folder}/stderr', "sh"]
        super().__init__(
            [*quiet, *command],
            folder,
            *("-m", f"{size // MIB}M", "-object", memory),
            *(
                _boot_options(folder, *chosen)
                if kind == "boot"
                else _linux_options(folder, *chosen)
            ),
            *("-serial", f"file:{self.serial}"),
            *options,
            environment=environment,
        )

    @property
    def pid(self) -> int:
        """Return the process's number."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Return whether the process has ended by itself."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the process, which may have ended by itself."""
        # The client tells of that when it is closed, too.
        with suppress(EOFError, ConnectionError) if self.ended else nullcontext():
            super().stop()

    def kill(self) -> None:
        """Kill the process, whatever it does."""
        self._process.kill()
        self._process.wait()

    def said(self) -> bytes:
        """Return what the guest has said here."""
        return self.serial.read_bytes() if self.serial.exists() else b""

    def wait_for_beats(self, count: int) -> None:
        """Wait until the guest has said so many more numbers."""
        wanted = len(beats(self.said())) + count

        def said() -> bool:
            found = self.said()
            lines = found.decode(errors="replace").splitlines()
            bad = [line for line in lines if any(word in line for word in _TROUBLE)]
            assert not bad, f"the guest of {self.serial} says {bad[0].strip()!r}"
            return len(beats(found)) >= wanted

        wait_until(said, "the guest stands still")

    def static_memory(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Return the memory of a boot guest that it writes only once."""
        return np.fromfile(self.shared_memory(), np.uint8)[_STATIC]


def _boot_options(folder: Path, machine: str = "pc-i440fx-7.2") -> tuple[str, ...]:
    image = folder / "boot.img"
    image.write_bytes((_NUMBERS.ljust(510, b"\0") + b"\x55\xaa").ljust(1440 << 10, b"\0"))
    drive = f"file={image},format=raw,id=boot,if=floppy"
    memory = ("-machine", f"{machine},memory-backend=ram")
    return (*memory, "-device", "VGA", "-drive", drive)


def kernel() -> Path | None:
    """Return the image of a Linux kernel, if this machine has one."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    named = os.environ.get("VMFERRY_LINUX") or Path(cache, "vmferry", "vmlinuz")
    return Path(named) if Path(named).exists() else None


def _linux_options(folder: Path, machine: str = "pc-q35-7.2") -> tuple[str, ...]:
    image, busybox = kernel(), shutil.which("busybox")
    if image is None or busybox is None:
        missing("a Linux kernel (.ci/unpack-linux makes one) or busybox")
    assert image is not None
    assert busybox is not None
    initrd = folder / "initramfs"
    files = {"init": (0o755, _INIT), "bin/busybox": (0o755, Path(busybox).read_bytes())}
    initramfs.write(files, initrd)
    append = "console=ttyS0 quiet panic=-1 no_timer_check nowatchdog"
    memory = ("-machine", f"{machine},memory-backend=ram")
    return (*memory, "-kernel", str(image), "-initrd", str(initrd), "-append", append)


@dataclass(frozen=True)
class Saved:
    """A guest that ran for a while, as a stream in a file, and what it had said until then."""

    kind: str
    stream: Path
    said: bytes


def save(kind: str, version: str, folder: Path) -> Saved:
    """Start a guest, and save it once it runs."""
    guest = Guest(kind, version, folder)
    try:
        guest.wait_for_beats(4)
        stream = folder / "stream"
        # A QEMU 7.2 under TCG may lose the last writes of a guest that runs.
        guest.ask("stop")
        guest.migrate(f"exec:cat > {stream}")
        return Saved(kind, stream, guest.said())
    finally:
        guest.stop()
