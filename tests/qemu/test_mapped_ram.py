"""mapped-ram files between vmferry and a real QEMU, which has the format since 9.0."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.qemu.machine import MANY_PAGES, MIB, Machine, vmferry

SIZE = 32 * MIB
MACHINE = "pc-i440fx-10.0"
MEMORY = (
    "-object",
    f"memory-backend-memfd,id=pc.ram,size={SIZE},share=on",
    "-machine",
    "memory-backend=pc.ram",
)


def saved_by_qemu(folder: Path, *capabilities: str) -> tuple[Path, Path]:
    """Have a QEMU save its running guest; return the file, and the guest's memory."""
    file, truth = folder / "by-qemu", folder / "truth"
    source = Machine("10", folder / "source", *MEMORY, machine=MACHINE, code=MANY_PAGES)
    try:
        source.enable("mapped-ram", *capabilities)
        if capabilities:
            source.ask("migrate-set-parameters", **{"multifd-channels": 2, "direct-io": True})
        source.wait_for_beats()
        source.migrate(f"file:{file}")
        shutil.copyfile(source.shared_memory(), truth)
    finally:
        source.stop()
    return file, truth


def done(*arguments: str) -> str:
    """Run a command that must succeed; return what it printed."""
    ran = vmferry(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def same(one: Path, other: Path) -> bool:
    """Return whether two files are equal."""
    return subprocess.run(["cmp", one, other], check=False).returncode == 0


def expecting(folder: Path) -> Machine:
    """Start a QEMU that waits to be told where its guest comes from."""
    options = (*MEMORY, "-S", "-incoming", "defer")
    return Machine("10", folder, *options, machine=MACHINE, code=MANY_PAGES)


@pytest.mark.parametrize("capabilities", [(), ("multifd",)], ids=["alone", "multifd"])
def test_there_and_back(capabilities: tuple[str, ...], tmp_path: Path) -> None:
    """Broken: a guest that QEMU saved would be another here, or QEMU refuse what we save."""
    file, truth = saved_by_qemu(tmp_path, *capabilities)
    saved, again = tmp_path / "saved", tmp_path / "again"
    done("receive", f"file:{file}", "--guest", f"dir:{saved}", "--workers=2", "--direct-io")
    (ram,) = (saved / "ram").glob("*pc.ram")
    assert same(ram, truth)
    done("send", f"file:{again}", "--guest", f"dir:{saved}", "--mapped-ram", "--workers=2")
    target = expecting(tmp_path / "target")
    try:
        target.enable("mapped-ram", *capabilities)
        if capabilities:
            target.ask("migrate-set-parameters", **{"multifd-channels": 2})
        target.ask("migrate-incoming", uri=f"file:{again}")
        target.wait_for("completed")
        assert same(target.shared_memory(), truth)
        target.ask("cont")
        target.wait_for_beats()
    finally:
        target.stop()


def test_an_offset_and_the_tools(tmp_path: Path) -> None:
    """Broken: a file that holds something else first, as libvirt's does, could not be used."""
    file, truth = saved_by_qemu(tmp_path)
    saved, again = tmp_path / "saved", tmp_path / "again"
    done("receive", f"file:{file}", "--guest", f"dir:{saved}")
    again.write_bytes(b"not the stream")
    uri = f"file:{again},offset=0x3000"
    done("send", uri, "--guest", f"dir:{saved}", "--mapped-ram", "--direct-io")
    assert again.read_bytes()[:14] == b"not the stream"
    at = ("--offset", "0x3000")
    assert "mapped-ram" in done("dump", str(again), *at)
    done("verify", str(again), *at, f"--ram=pc.ram={truth}")
    done("extract", str(again), *at, "-o", str(tmp_path / "out"), "--block", "pc.ram")
    assert same(tmp_path / "out", truth)
    target = expecting(tmp_path / "target")
    try:
        target.enable("mapped-ram")
        target.ask("migrate-incoming", uri=uri)
        target.wait_for("completed")
        assert same(target.shared_memory(), truth)
    finally:
        target.stop()
