"""A real QEMU with a boot-sector guest, and the command line beside it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ConnectError
from qemu.qmp.legacy import QEMUMonitorProtocol

from tests.patience import PATIENCE, wait_until

VMFERRY = [sys.executable, "-m", "vmferry.tools.cli"]
MIB = 1 << 20


def missing(what: str) -> None:
    if os.environ.get("VMFERRY_REQUIRE_QEMU"):
        pytest.fail(f"{what} is missing, and VMFERRY_REQUIRE_QEMU is set")
    pytest.skip(f"{what} is not installed")


def qemu_command(version: str, target: str = "x86_64") -> tuple[list[str], dict[str, str]]:
    """Return the beginning of a QEMU's command line, and its environment.

    Without such a QEMU the test is skipped, or fails if one is required.
    """
    program = f"qemu-system-{target}"
    if version == "7.2":
        if shutil.which(program) is None:
            missing(program)
        return [program], {}
    folder = os.environ.get("VMFERRY_QEMU10", "")
    if not folder or not Path(folder, "usr/bin", program).exists():
        missing(f"{program} 10 (in the folder that VMFERRY_QEMU10 names)")
    data = [f"{folder}/usr/share/qemu", f"{folder}/usr/share/seabios"]
    command = [f"{folder}/usr/bin/{program}", "-L", data[0], "-L", data[1]]
    return command, {"LD_LIBRARY_PATH": f"{folder}/usr/lib/x86_64-linux-gnu"}


# 16-bit code: counts in ecx, writes that to 16 pages, sends 'H' to the serial port now and then.
COUNTER = bytes.fromhex(
    "6631c9"  # xor ecx, ecx
    "b80010"  # mov ax, 0x1000
    "8ec0"  # mov es, ax
    "6641"  # inc ecx              <- next
    "31ff"  # xor di, di
    "2666890d"  # mov es:[di], ecx     <- page
    "81c70010"  # add di, 0x1000
    "75f6"  # jnz page
    "f6c1ff"  # test cl, 0xff
    "75ed"  # jnz next
    "b048"  # mov al, 'H'
    "baf803"  # mov dx, 0x3f8
    "ee"  # out dx, al
    "ebe5"  # jmp next
)


# The same with 1024 pages from 2 MiB on: two words of each page change in a pass, one of them in
# another place each time. 64 pages behind them turn zero, and come back, one after the other.
# Beyond 1 MiB with a data segment that has no limit ("unreal mode").
MANY_PAGES = bytes.fromhex(
    "fa31c08ed8"  # cli; xor ax, ax; mov ds, ax
    "660f0116a07c"  # lgdt [0x7ca0]
    "0f20c00c010f22c0"  # mov eax, cr0; or al, 1; mov cr0, eax
    "bb08008ec3"  # mov bx, 8; mov es, bx
    "24fe0f22c0"  # and al, 0xfe; mov cr0, eax
    "6631c9"  # xor ecx, ecx
    "6641"  # inc ecx              <- next
    "66bf00002000"  # mov edi, 0x200000
    "6689cb6681e3fc0f0000"  # mov ebx, ecx; and ebx, 0xffc <- page
    "266766890c1f"  # mov es:[edi + ebx], ecx
    "266766898fd0070000"  # mov es:[edi + 2000], ecx
    "6681c700100000"  # add edi, 0x1000
    "6681ff00006000"  # cmp edi, 0x600000
    "75d7"  # jne page
    "6689fb66c1eb08"  # mov ebx, edi; shr ebx, 8   <- zero
    "6601cb6683e340"  # add ebx, ecx; and ebx, 0x40
    "266766891f"  # mov es:[edi], ebx
    "6681c700100000"  # add edi, 0x1000
    "6681ff00006400"  # cmp edi, 0x640000
    "75dd"  # jne zero
    "f6c10f75a7"  # test cl, 0xf; jne next
    "b048baf803ee"  # mov al, 'H'; mov dx, 0x3f8; out dx, al
    "eb9f669090909090909090909090909090"  # jmp next; nothing
    "0000000000000000ffff00000092cf00"  # descriptors: none; data, 4 GiB
    "0f00907c0000"  # limit and place of the descriptors
)


# AArch64 code for the machine `virt` that does as MANY_PAGES, from 16 MiB of its RAM on.
MANY_PAGES_OF_ARM = struct.pack(
    "<22I",
    0xD2A12003,  # mov x3, #0x9000000
    0x52800904,  # mov w4, #'H'
    0xD2A82000,  # mov x0, #0x41000000      <- next
    0xD2808001,  # mov x1, #1024
    0x91000442,  # add x2, x2, #1
    0x927D2045,  # and x5, x2, #0xff8
    0xF9000002,  # str x2, [x0]             <- page
    0xF8256802,  # str x2, [x0, x5]
    0x91400400,  # add x0, x0, #0x1000
    0xF1000421,  # subs x1, x1, #1
    0x54FFFF81,  # b.ne page
    0xD348FC05,  # lsr x5, x0, #8           <- zero
    0x8B0200A5,  # add x5, x5, x2
    0x927A00A5,  # and x5, x5, #0x40
    0xF9000005,  # str x5, [x0]
    0x91400400,  # add x0, x0, #0x1000
    0xF26E001F,  # tst x0, #0x40000
    0x54FFFF40,  # b.eq zero
    0xF2400C5F,  # tst x2, #0xf
    0x54FFFDE1,  # b.ne next
    0xB9000064,  # str w4, [x3]
    0x17FFFFED,  # b next
)

# Firmware that puts what stands behind it where a BIOS puts a boot sector, and jumps there.
_LOADER = bytes.fromhex(
    "fafc31c08ec0"  # cli; cld; xor ax, ax; mov es, ax
    "b800f08ed8"  # mov ax, 0xf000; mov ds, ax
    "be0001bf007cb90002f3a4"  # mov si, 0x100; mov di, 0x7c00; mov cx, 0x200; rep movsb
    "ea007c0000"  # jmp 0:0x7c00
)
_RESET = bytes.fromhex("ea000000f0")  # jmp 0xf000:0
_FIRMWARE_SIZE = 1 << 16


def _boot_options(machine: str, code: bytes, folder: Path) -> tuple[str, ...]:
    """Return the options with which a machine runs this code."""
    image = folder / "boot.img"
    if machine.startswith("virt"):
        image.write_bytes(code)
        loader = f"loader,file={image},addr=0x40100000,force-raw=on,cpu-num=0"
        return ("-cpu", "cortex-a57", "-device", loader)
    if machine.startswith("microvm"):
        # The firmware of 7.2 does not boot from the disks of a microvm.
        start = _LOADER.ljust(0x100, b"\0") + code
        image.write_bytes(start.ljust(_FIRMWARE_SIZE - 16, b"\0") + _RESET.ljust(16, b"\0"))
        return ("-bios", str(image))
    bus, size = ("ide", 2 << 20) if "q35" in machine else ("floppy", 1440 << 10)
    image.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(size, b"\0"))
    return ("-device", "VGA", "-drive", f"file={image},format=raw,id=boot,if={bus}")


def in_fourth_round(told: Any) -> bool:
    """Return whether a migration, of which QEMU says this, has come to its fourth round."""
    rounds: int = told["ram"]["dirty-sync-count"]
    return rounds > 3


class BareMachine:
    """A QEMU with a monitor and no devices but those that are asked for."""

    def __init__(
        self,
        command: str | list[str],
        folder: Path,
        *options: str,
        environment: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._ended: Path | None = None
        self._process = subprocess.Popen(
            [
                *([command] if isinstance(command, str) else command),
                *("-accel", "tcg", "-display", "none", "-nodefaults", "-no-shutdown"),
                *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
                *options,
            ],
            env={**os.environ, **(environment or {})},
            pass_fds=pass_fds,
        )
        self.qmp = QEMUMonitorProtocol(f"{folder}/qmp")
        self._connect()

    def _connect(self) -> None:
        """Connect to the socket, which QEMU makes and listens on some time after it starts."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.qmp.connect()
            except ConnectError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def ask(self, name: str, **arguments: Any) -> Any:
        return self.qmp.cmd(name, **arguments)

    def enable(self, *capabilities: str) -> None:
        self._set_capabilities(capabilities, state=True)

    def disable(self, *capabilities: str) -> None:
        self._set_capabilities(capabilities, state=False)

    def _set_capabilities(self, names: tuple[str, ...], *, state: bool) -> None:
        wanted = [{"capability": name, "state": state} for name in names]
        self.ask("migrate-set-capabilities", capabilities=wanted)

    def migrate(self, uri: str) -> None:
        self.begin_migration(uri)
        self.wait_for("completed")

    def begin_migration(self, uri: str, **arguments: Any) -> None:
        """Migrate; a wait for "completed" then also waits for the end of a command.

        QEMU may say so, and end, while the command still writes the last bytes.
        """
        command = uri.removeprefix("exec:")
        if command != uri:
            self._ended = self._folder / "ended"
            self._ended.unlink(missing_ok=True)
            uri = f"exec:{command}; touch {self._ended}"
        self.ask("migrate", uri=uri, **arguments)

    def migrate_until(self, uri: str, enough: Callable[[Any], bool], limit: int = 16 * MIB) -> None:
        """Migrate at `limit` bytes per second until what QEMU says is enough, then to the end."""
        self.ask("migrate-set-parameters", **{"max-bandwidth": limit, "downtime-limit": 1})
        self.begin_migration(uri)

        def is_enough() -> bool:
            told = self.ask("query-migrate")
            return "ram" in told and enough(told)

        wait_until(is_enough, lambda: self.ask("query-migrate"))
        self.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 34, "downtime-limit": 2000})
        self.wait_for("completed")

    def wait_for(self, status: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while (answer := self.ask("query-migrate")).get("status") != status:
            assert answer.get("status") != "failed", answer
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)
        while status == "completed" and self._ended is not None and not self._ended.exists():
            assert time.monotonic() < deadline, "the command does not end"
            time.sleep(0.02)

    def shared_memory(self) -> Path:
        """Return the present content of a `memory-backend-memfd` of this QEMU."""
        for path in Path(f"/proc/{self._process.pid}/fd").iterdir():
            if path.readlink().name.startswith("memfd:memory-backend"):
                return path
        raise AssertionError("no memory of this QEMU is a memfd")

    def stop(self) -> None:
        try:
            self.qmp.close()
        finally:
            self._process.terminate()
            self._process.wait(PATIENCE)


class Machine(BareMachine):
    """A QEMU with a guest of a few instructions that writes its memory and a heartbeat."""

    _before: tuple[str, ...] = ()
    """Words before the command line."""

    def __init__(
        self,
        version: str,
        folder: Path,
        *options: str,
        machine: str = "pc-i440fx-7.2",
        code: bytes = COUNTER,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        folder.mkdir()
        self.serial = folder / "serial"
        target = "aarch64" if machine.startswith("virt") else "x86_64"
        command, environment = qemu_command(version, target)
        super().__init__(
            [*self._before, *command],
            folder,
            *("-machine", machine, "-m", "32", *_boot_options(machine, code, folder)),
            *("-serial", f"file:{self.serial}"),
            *options,
            environment=environment,
            pass_fds=pass_fds,
        )

    def beats(self) -> int:
        return self.serial.stat().st_size if self.serial.exists() else 0

    def wait_for_beats(self) -> None:
        start = self.beats()
        wait_until(lambda: self.beats() >= start + 3)


def vmferry(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `vmferry ARGUMENTS` to its end."""
    return subprocess.run(
        [*VMFERRY, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def check_arrived(destination: Machine, saved: Path, folder: Path) -> None:
    """Wait until a guest has arrived, with the RAM in `saved`; then let it run on."""
    destination.wait_for("completed")
    destination.migrate(f"exec:cat > {folder}/again")
    checked = vmferry("verify", f"{folder}/again", *ram_options(saved))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    destination.ask("cont")
    destination.wait_for_beats()


def saved_stream(version: str, folder: Path) -> Path:
    """Return the stream of a guest that ran for a while."""
    stream = folder / "stream"
    source = Machine(version, folder / "source")
    try:
        source.wait_for_beats()
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    return stream


def rebuilt_stream(
    version: str,
    folder: Path,
    stream: Path,
    *options: str,
    capabilities: tuple[str, ...] = (),
    uri: str | None = None,
) -> Path:
    """Return the stream that a stock QEMU sends after it has loaded this one.

    `capabilities`: what it takes to read the stream, whose `uri` may be another than a pipe.
    """
    again = folder / "again"
    stock = Machine(version, folder / "stock", "-S", *options, "-incoming", "defer")
    try:
        stock.enable(*capabilities)
        stock.ask("migrate-incoming", uri=uri or f"exec:cat {stream}")
        stock.wait_for("completed")
        stock.disable(*capabilities)
        stock.migrate(f"exec:cat > {again}")
    finally:
        stock.stop()
    return again


def stock_ram(again: Path, folder: Path) -> list[str]:
    """Return the options of `verify` for all RAM of an ordinary stream."""
    saved = folder / "saved"
    received = vmferry("receive", f"file:{again}", "--guest", f"dir:{saved}")
    assert received.returncode == 0, received.stderr
    return ram_options(saved)


def ram_options(folder: Path) -> list[str]:
    """Return the options of `verify` for all RAM of a directory guest."""
    document = json.loads((folder / "guest.json").read_text())
    blocks = [(block["name"], folder / "ram" / block["file"]) for block in document["blocks"]]
    assert len(blocks) > 3
    return [f"--ram={name}={path}" for name, path in blocks]
