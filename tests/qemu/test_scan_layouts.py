"""Memory of several backends, plugged memory and memory above the PCI hole: `qemu:SOCK,scan`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.patience import PATIENCE
from tests.qemu.machine import BareMachine, qemu_command, vmferry
from tests.qemu.scanning import receiving

GIB = 1 << 30
MIB = 1 << 20
PAGE = 4096


class Layout(BareMachine):
    """A QEMU whose guest does nothing, with memory in files that are named by their blocks."""

    def __init__(self, version: str, folder: Path, sizes: dict[str, int], *options: str) -> None:
        folder.mkdir()
        command, environment = qemu_command(version)
        self.guest = f"qemu:{folder}/scan,scan"
        self.files = {name: Path(f"{folder}.{name}") for name in sizes}
        objects = [
            f"memory-backend-file,id={name},size={size},share=on,mem-path={self.files[name]}"
            for name, size in sizes.items()
        ]
        super().__init__(
            command,
            folder,
            *(word for text in objects for word in ("-object", text)),
            *("-qmp", f"unix:{folder}/scan,server=on,wait=off"),
            *options,
            environment=environment,
        )

    def write(self, generator: np.random.Generator) -> dict[str, list[int]]:
        """Write pages all over the memory, as a guest might; return where."""
        written: dict[str, list[int]] = {}
        for name, path in self.files.items():
            count = path.stat().st_size // PAGE
            pages = np.unique([count // 2, count - 1, *generator.integers(512, count, 60)])
            with path.open("r+b") as file:
                for page in pages.tolist():
                    file.seek(page * PAGE)
                    file.write(generator.bytes(PAGE))
            written[name] = pages.tolist()
        return written

    def read(self, where: dict[str, list[int]]) -> list[bytes]:
        """Return these pages."""
        found = []
        for name, pages in where.items():
            with self.files[name].open("rb") as file:
                for page in pages:
                    file.seek(page * PAGE)
                    found.append(file.read(PAGE))
        return found


NUMA = {"one": 64 * MIB, "other": 64 * MIB, "dimm": 128 * MIB}
NODES = (
    *("-m", "128M,slots=2,maxmem=1G"),
    *("-numa", "node,nodeid=0,memdev=one", "-numa", "node,nodeid=1,memdev=other"),
    *("-device", "pc-dimm,id=plugged,memdev=dimm"),
)
LARGE = {"ram": 9 * GIB // 2}
HOLE = ("-m", "4608M", "-machine", "memory-backend=ram")


@pytest.mark.parametrize(
    "sizes", [NUMA, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["several", "above 4 GiB"]
)
@pytest.mark.parametrize("machine", ["pc-i440fx-7.2", "pc-q35-7.2"])
def test_all_memory_arrives(
    version: str, tmp_path: Path, machine: str, sizes: dict[str, int]
) -> None:
    """Broken: pages would land in another backend, at another place, or nowhere."""
    options = ("-machine", machine, *(NODES if sizes is NUMA else HOLE), "-device", "VGA")
    source = Layout(version, tmp_path / "source", sizes, *options)
    target = Layout(version, tmp_path / "target", sizes, *options, "-incoming", "defer")
    try:
        written = source.write(np.random.default_rng(1))
        receive = receiving(target.guest, tmp_path)
        sent = vmferry("send", f"unix:{tmp_path}/in", "--guest", source.guest, "--workers", "2")
        assert sent.returncode == 0, sent.stderr
        assert receive.wait(PATIENCE) == 0
        assert target.read(written) == source.read(written)
        assert target.ask("query-status")["running"]
    finally:
        source.stop()
        target.stop()
        for path in (*source.files.values(), *target.files.values()):
            path.unlink()
