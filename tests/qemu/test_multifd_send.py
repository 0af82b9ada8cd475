"""Guests that vmferry sends to a real QEMU over several channels at once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.qemu.capture import Capture
from tests.qemu.machine import MANY_PAGES, MIB, Machine, vmferry

SIZE = 32 * MIB
MEMORY = (
    "-object",
    f"memory-backend-memfd,id=pc.ram,size={SIZE},share=on",
    "-machine",
    "memory-backend=pc.ram",
)
UUID = "00112233-4455-6677-8899-aabbccddeeff"

TABLE = [
    ("7.2", "pc-i440fx-7.2", 2, "none", "auto"),
    ("7.2", "q35", 8, "zstd", "auto"),
    ("7.2", "pc-i440fx-7.2", 4, "zlib", "none"),
    ("10", "pc-i440fx-10.0", 2, "none", "auto"),
    ("10", "q35", 4, "zlib", "legacy"),
    ("10", "pc-i440fx-10.0", 8, "zstd", "multifd"),
    ("10", "pc-i440fx-10.0", 4, "none", "none"),
    ("10", "pc-i440fx-7.2", 2, "zstd", "auto"),
]


def kept(version: str, machine: str, folder: Path) -> tuple[Path, Path]:
    """Keep a stopped guest as a folder; return that, and its memory."""
    saved, truth = folder / "saved", folder / "truth"
    source = Machine(version, folder / "source", *MEMORY, machine=machine, code=MANY_PAGES)
    try:
        source.wait_for_beats()
        source.ask("stop")
        source.migrate(f"exec:cat > {folder}/stream")
        shutil.copyfile(source.shared_memory(), truth)
    finally:
        source.stop()
    received = vmferry("receive", f"file:{folder}/stream", "--guest", f"dir:{saved}")
    assert received.returncode == 0, received.stderr
    return saved, truth


def listening(version: str, machine: str, folder: Path, channels: int, compression: str) -> Machine:
    """Start a QEMU that expects a guest over `folder`/in, over this number of channels."""
    options = (*MEMORY, "-S", "-incoming", "defer")
    target = Machine(version, folder / "target", *options, machine=machine, code=MANY_PAGES)
    target.enable("multifd")
    names = {"multifd-channels": channels, "multifd-compression": compression}
    target.ask("migrate-set-parameters", **names)
    target.ask("migrate-incoming", uri=f"unix:{folder}/in")
    return target


@pytest.mark.parametrize(("version", "machine", "channels", "compression", "zero"), TABLE)
def test_qemu_takes_the_guest(
    version: str, machine: str, channels: int, compression: str, zero: str, tmp_path: Path
) -> None:
    """Broken: a stock QEMU would refuse our channels, or build other memory of them; or whoever
    kept the channels could not read them."""
    saved, truth = kept(version, machine, tmp_path)
    target = listening(version, machine, tmp_path, channels, compression)
    capture = Capture(tmp_path / "relay", tmp_path / "in", tmp_path / "channels")
    try:
        sent = vmferry(
            "send",
            f"unix:{tmp_path}/relay",
            "--guest",
            f"dir:{saved}",
            f"--multifd-channels={channels}",
            f"--multifd-compression={compression}",
            f"--zero-page-detection={zero}",
        )
        assert sent.returncode == 0, sent.stderr
        target.wait_for("completed")
        same = subprocess.run(["cmp", target.shared_memory(), truth], check=False)
        assert same.returncode == 0
        target.ask("cont")
        target.wait_for_beats()
    finally:
        target.stop()
    main, others = capture.close()
    options = [f"--channel={file}" for file in others]
    ran = vmferry("extract", str(main), *options, "-o", str(tmp_path / "ram"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert subprocess.run(["cmp", tmp_path / "ram", truth], check=False).returncode == 0


def test_destination_without_multifd(tmp_path: Path) -> None:
    """Broken: the guest would be lost, or the command hang, where only one end has multifd."""
    saved, _ = kept("10", "pc-i440fx-10.0", tmp_path)
    before = contents(saved)
    options = (*MEMORY, "-S", "-incoming", f"unix:{tmp_path}/in")
    target = Machine("10", tmp_path / "target", *options, machine="pc-i440fx-10.0", code=MANY_PAGES)
    try:
        uri = f"unix:{tmp_path}/in"
        sent = vmferry("send", uri, "--guest", f"dir:{saved}", "--multifd-channels=2")
        assert sent.returncode == 1
        assert len(sent.stderr.splitlines()) == 1, sent.stderr
    finally:
        target.stop()
    assert contents(saved) == before


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
