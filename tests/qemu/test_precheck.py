"""`vmferry precheck`: what it says before is what a real QEMU does with the stream."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from qemu.qmp import QMPError
from vmferry.protocol import events
from vmferry.tools.precheck.findings import Finding
from vmferry.tools.precheck.report import Report
from vmferry.tools.precheck.sides import read_side
from vmferry.tools.sources.stream_events import How, read_events

from tests.patience import wait_until
from tests.qemu.machine import Machine, qemu_command, vmferry
from tests.qemu.pairs import PAIRS, PC, Side

VERSIONS = (("7.2", "7.2"), ("7.2", "10"), ("10", "7.2"), ("10", "10"))
"""The QEMUs at both ends."""
FEATURES = 4 + 256 + 16 + (4 * 16 + 1) + 2 + 4
"""The offset of the features that the guest of a virtio card has switched on, in its state.

Before them are the version, the PCI configuration space, the interrupts, 4 MSI-X vectors, the
vector of changes, status, interrupt status, and the queue that the guest selected.
"""
GONE = (QMPError, OSError, EOFError)
"""Errors that a client of a QEMU raises which has ended."""
Streams = Callable[[str, Side], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with option ROMs and a BIOS of unusual sizes."""
    made = tmp_path_factory.mktemp("roms")
    for name, size in {"small.rom": 4096, "large.rom": 300_000}.items():
        (made / name).write_bytes(b"\x55\xaa\x08".ljust(size, b"\0"))
    (made / "large.bios").write_bytes(bytes(1 << 19))
    return made


def words(side: Side, folder: Path) -> list[str]:
    """Return the options of a side."""
    return shlex.split(side.options.format(folder=folder))


@pytest.fixture(scope="module")
def streams(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Streams:
    """Return a function that gives the stream of a guest that ran for a while, which it keeps."""
    made: dict[tuple[str, Side], Path] = {}

    def stream(version: str, side: Side) -> Path:
        if (version, side) not in made:
            place = tmp_path_factory.mktemp("source")
            source = Machine(version, place / "qemu", *words(side, folder), machine=side.machine)
            try:
                if "-bios" not in side.options:
                    source.wait_for_beats()
                source.migrate(f"exec:cat > {place}/stream")
            finally:
                source.stop()
            made[version, side] = place / "stream"
        return made[version, side]

    return stream


def loads(destination: Machine, stream: Path) -> bool:
    """Return whether a QEMU takes a stream; one that does not says so, or ends."""
    done = ("completed", "failed")
    try:
        destination.ask("migrate-incoming", uri=f"exec:cat {stream}")
        wait_until(lambda: destination.ask("query-migrate").get("status") in done)
        return bool(destination.ask("query-migrate")["status"] == "completed")
    except GONE:
        return False


def end(machine: Machine) -> None:
    """End a QEMU that may have ended by itself."""
    with suppress(*GONE):
        machine.stop()


def obstacles(stream: Path, side: str) -> list[Finding]:
    """Return the findings of precheck that keep a stream from loading at a side."""
    a, b = (read_side((each,), How()).facts for each in (str(stream), side))
    return [finding for finding in Report.of(a, b).findings if finding.fatal]


@pytest.mark.parametrize(("source", "destination"), VERSIONS)
@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("name", PAIRS)
def test_what_it_says_is_what_the_load_does(
    name: str,
    back: bool,
    source: str,
    destination: str,
    streams: Streams,
    folder: Path,
    tmp_path: Path,
) -> None:
    """Broken: a guest would be moved that does not arrive, or left where it is without a reason."""
    pair = PAIRS[name]
    a, b, kind = (pair.b, pair.a, pair.back) if back else (pair.a, pair.b, pair.there)
    stream = streams(source, a)
    socket = tmp_path / "second"
    second = ("-qmp", f"unix:{socket},server=on,wait=off", "-incoming", "defer")
    there = Machine(destination, tmp_path / "qemu", *words(b, folder), *second, machine=b.machine)
    try:
        found = obstacles(stream, f"qemu:{socket}")
        loaded = loads(there, stream)
    finally:
        end(there)
    assert [finding.kind for finding in found[:1]] == ([] if kind is None else [kind])
    assert loaded == (not found), found


@pytest.mark.parametrize(("version", "machine"), [("7.2", "pc-i440fx-7.2"), ("10", "pc-q35-10.0")])
def test_command_line(
    version: str, machine: str, streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a command line that loads the stream would be refused, as for its machine's alias,
    or it would leave a QEMU or a file behind."""
    stream = streams(version, Side(machine=machine))
    command, environment = qemu_command(version)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    alias = machine.split("-")[1].replace("i440fx", "pc")
    disk = f"file={tmp_path}/none.img,format=raw,if={'ide' if alias == 'q35' else 'floppy'}"
    options = ["-nodefaults", "-machine", alias, "-device", "VGA", "-drive", disk]
    port = f"file:{tmp_path}/serial"
    ran = vmferry(
        "precheck", "--json", str(stream), "--", *command, *options, "-m", "33", "-serial", port
    )
    assert ran.returncode == 1, ran.stderr
    (found,) = json.loads(ran.stdout)["findings"]
    assert (found["where"], found["option"]) == ("pc.ram", "-m 32M")
    quoted = shlex.join([*command, *options, "-m", "32", "-serial", port])
    ran = vmferry("precheck", str(stream), quoted)
    assert ran.stdout == "would load\n", ran.stdout + ran.stderr
    assert list(tmp_path.iterdir()) == []


LIBVIRT = """
-name guest=x,debug-threads=on -S
-object '{{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/nowhere/master-key.aes"}}'
-machine pc-q35-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram,pflash0=format0
-blockdev '{{"driver":"file","filename":"{folder}/flash","node-name":"storage0"}}'
-blockdev '{{"node-name":"format0","read-only":true,"driver":"raw","file":"storage0"}}'
-accel tcg -cpu qemu64 -m size=65536k -overcommit mem-lock=off -smp 2,sockets=2,cores=1,threads=1
-object '{{"qom-type":"memory-backend-ram","id":"pc.ram","size":67108864}}'
-uuid 4dea22b3-1d52-d8f3-2516-782e98ab3fa0 -no-user-config -nodefaults
-chardev socket,id=charmonitor,fd=21,server=on,wait=off -mon chardev=charmonitor,mode=control
-rtc base=utc,driftfix=slew -global kvm-pit.lost_tick_policy=delay -no-shutdown -boot strict=on
-device '{{"driver":"pcie-root-port","chassis":1,"id":"pci.1","bus":"pcie.0","addr":"0x2"}}'
-device '{{"driver":"qemu-xhci","p2":15,"p3":15,"id":"usb","bus":"pci.1","addr":"0x0"}}'
-blockdev '{{"driver":"file","filename":"/nowhere/disk","node-name":"storage1"}}'
-blockdev '{{"node-name":"format1","read-only":false,"driver":"qcow2","file":"storage1"}}'
-device '{{"driver":"virtio-blk-pci","bus":"pcie.0","addr":"0x4","drive":"format1","bootindex":1}}'
-netdev '{{"type":"tap","fd":"25","vhost":true,"vhostfd":"26","id":"hostnet0"}}'
-device '{{"driver":"virtio-net-pci","netdev":"hostnet0","id":"net0","bus":"pcie.0","addr":"0x5"}}'
-chardev pty,id=charserial0
-device '{{"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}}'
-audiodev '{{"id":"audio1","driver":"spice"}}' -spice port=5900,addr=127.0.0.1,seamless-migration=on
-device '{{"driver":"VGA","id":"video0","vgamem_mb":16,"bus":"pcie.0","addr":"0x1"}}'
-incoming defer -sandbox on,spawn=deny,resourcecontrol=deny -msg timestamp=on
"""
"""A command line such as libvirt 9 makes."""


def test_command_line_of_libvirt(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: libvirt's guests, whose files and descriptors are theirs alone, could not be
    compared."""
    (tmp_path / "flash").write_bytes(bytes(1 << 19))
    command, environment = qemu_command(version)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = [*command, *shlex.split(LIBVIRT.format(folder=tmp_path))]
    ran = vmferry("precheck", shlex.join(line), "--", *line)
    assert ran.stdout == "would load\n", ran.stdout + ran.stderr


def test_trial(
    version: str, streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: what only a load shows, here a feature of virtio that B does not offer, would be no
    obstacle; or a trial would refuse what loads."""
    card = "-device virtio-net-pci,addr=9"
    stream = streams(version, Side(card))
    command, environment = qemu_command(version)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = f"-nodefaults -machine {PC} -m 32 -device VGA -drive if=floppy -serial null {card}"
    there = [*command, "-accel", "tcg", *options.split()]
    loaded = vmferry("precheck", "--trial", str(stream), "--", *there)
    assert loaded.stdout == "would load\n", loaded.stdout + loaded.stderr
    with stream.open("rb") as file:
        found = [e for e in read_events(file) if isinstance(e, events.DeviceSection)]
    (section,) = (each for each in found if each.name.endswith("/virtio-net"))
    state = bytearray(stream.read_bytes())
    at = section.payload_offset + FEATURES
    state[at : at + 4] = b"\xff" * 4
    (tmp_path / "features").write_bytes(state)
    wanted = ("precheck", str(tmp_path / "features"), "--", *there)
    assert vmferry(*wanted).returncode == 0
    refused = vmferry("precheck", "--trial", *wanted[1:])
    assert refused.returncode == 1, refused.stderr
    assert f"{section.name}: B says: Features 0x" in refused.stdout


def test_running_guest_is_left_alone(version: str, tmp_path: Path) -> None:
    """Broken: a twin would open the memory, the disk or the log of the guest that it is like, or a
    QEMU would be left behind."""
    disk, memory, socket = (tmp_path / name for name in ("disk", "memory", "second"))
    disk.write_bytes(bytes(1 << 20))
    options = (
        *("-object", f"memory-backend-file,id=pc.ram,size=32M,share=on,mem-path={memory}"),
        *("-machine", "memory-backend=pc.ram"),
        *("-blockdev", json.dumps({"driver": "file", "filename": str(disk), "node-name": "d"})),
        *("-device", "virtio-blk-pci,drive=d", "-qmp", f"unix:{socket},server=on,wait=off"),
    )
    guest = Machine(version, tmp_path / "qemu", *options)
    try:
        guest.wait_for_beats()
        guest.ask("stop")
        beats, before = guest.beats(), memory.read_bytes()
        ran = vmferry("precheck", f"qemu:{socket}", f"qemu:{socket}")
        assert ran.stdout == "would load\n", ran.stdout + ran.stderr
        assert (guest.beats(), memory.read_bytes()) == (beats, before)
        guest.ask("cont")
        guest.wait_for_beats()
    finally:
        guest.stop()
    mine = [p for p in psutil.process_iter() if f"{tmp_path}" in " ".join(_command(p))]
    assert mine == []


def _command(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words
