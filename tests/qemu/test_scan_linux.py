"""Linux guests that `qemu:SOCK,scan` moves: they count on, and their files stay what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.qemu.machine import MIB, vmferry
from tests.qemu.scanning import receiving
from tests.relay.network.guests import Guest, beats

pytestmark = pytest.mark.slow

PC, Q35 = "pc-i440fx-7.2", "pc-q35-7.2"
CASES = [
    ("10", "10", Q35, "scan", "scan"),
    ("10", "7.2", Q35, "scan", "stock"),
    ("10", "10", PC, "stock", "scan"),
    ("7.2", "10", PC, "scan", "scan"),
    ("7.2", "7.2", Q35, "scan", "stock"),
    ("7.2", "7.2", PC, "scan", "scan"),
]


def guest(
    version: str, folder: Path, *options: str, machine: str = Q35, size: int | None = None
) -> Guest:
    """Start a Linux guest with memory that vmferry can map, and a monitor for vmferry."""
    monitor = ("-qmp", f"unix:{folder}/scan,server=on,wait=off")
    kind = (
        "memory-backend-memfd" if version == "7.2" else f"memory-backend-file,mem-path={folder}.ram"
    )
    return Guest(
        "linux", version, folder, *monitor, *options, machine=machine, memory=kind, size=size
    )


def migrate(source: Guest, target: Guest, folder: Path, ends: tuple[str, str]) -> None:
    """Move a guest; each end is a `stock` QEMU, or one whose memory vmferry `scan`s."""
    uri = f"unix:{folder}/in"
    if ends[1] == "stock":
        target.enable("return-path")
        target.ask("migrate-incoming", uri=uri)
    else:
        receive = receiving(f"qemu:{folder}/target/scan,scan", folder)
    if ends[0] == "stock":
        source.enable("return-path")
        source.migrate(uri)
    else:
        name = f"qemu:{folder}/source/scan,scan"
        sent = vmferry("send", uri, "--guest", name, "--workers", "2")
        assert sent.returncode == 0, sent.stderr
    if ends[1] == "scan":
        assert receive.wait(PATIENCE) == 0


@pytest.mark.parametrize(("here", "there", "machine", "first", "second"), CASES)
def test_linux_counts_on(
    tmp_path: Path, here: str, there: str, machine: str, first: str, second: str
) -> None:
    """Broken: a guest would lose time, or a byte of a file, or crash some time later."""
    source = guest(here, tmp_path / "source", machine=machine)
    target = guest(there, tmp_path / "target", "-incoming", "defer", machine=machine)
    try:
        source.wait_for_beats(5)
        migrate(source, target, tmp_path, (first, second))
        target.wait_for_beats(10)
        found = beats(source.said() + target.said())
        assert found == list(range(1, len(found) + 1)), "a number is missing, or there twice"
    finally:
        source.stop()
        target.stop()


def test_linux_above_the_pci_hole(tmp_path: Path) -> None:
    """Broken: memory above 4 GiB would land elsewhere, or nowhere."""
    size = 4608 * MIB
    source = guest("10", tmp_path / "source", size=size)
    target = guest("10", tmp_path / "target", "-incoming", "defer", size=size)
    try:
        source.wait_for_beats(5)
        migrate(source, target, tmp_path, ("scan", "scan"))
        target.wait_for_beats(10)
        found = beats(source.said() + target.said())
        assert found == list(range(1, len(found) + 1)), "a number is missing, or there twice"
    finally:
        source.stop()
        target.stop()
