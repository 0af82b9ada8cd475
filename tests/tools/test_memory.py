"""Memory use of the commands that read streams does not grow with the stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vmferry.protocol import events

from tests import streams
from tests.tools.running import run_process

PAGES = 32768
"""Number of the guest's pages, all of which are sent: 128 MiB."""
STEP = 2048
MORE = 24 << 10
"""KiB that may come on top of what a small stream takes: buffers, whatever their number."""

COMMANDS = {
    "verify": ("verify", "{stream}"),
    "against": ("verify", "{stream}", "--against", "{stream}"),
    "diff": ("diff", "{stream}", "{stream}"),
    "dump": ("dump", "{stream}"),
    "raw": ("extract", "{stream}", "-o", "{out}"),
    "elf": ("extract", "{stream}", "-o", "{out}", "--format", "elf"),
    "plain": ("convert", "{stream}", "{out}", "--to", "plain"),
    "zstd": ("convert", "{stream}", "{out}", "--to", "zstd"),
    "mapped-ram": ("convert", "{stream}", "{out}", "--to", "mapped-ram"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module")
def large(folder: Path) -> Path:
    ram = events.RamBlock("pc.ram", PAGES * 4096)
    path = folder / "large"
    with path.open("wb") as file:
        file.write(streams.to_bytes(streams.opening((ram,))))
        for start in range(0, PAGES, STEP):
            offsets = np.arange(start, start + STEP, dtype=np.uint64) * np.uint64(4096)
            data = np.full((STEP, 4096), start // STEP + 1, np.uint8)
            run = events.PageRun(0, ram, 0, offsets, data)
            file.write(streams.to_bytes(streams.ram_part(run)))
        file.write(streams.to_bytes(streams.closing()))
    return path


@pytest.fixture(scope="module")
def usual(folder: Path) -> int:
    """Return how many KiB of memory a small stream takes."""
    return int(run_process("verify", "-", feed=streams.WHOLE, folder=folder).rss)


@pytest.mark.parametrize("name", COMMANDS)
def test_does_not_grow(folder: Path, large: Path, usual: int, name: str) -> None:
    """Broken: a stream larger than memory could not be read."""
    out = folder / "converted"
    arguments = [word.format(stream=large, out=out) for word in COMMANDS[name]]
    ran = run_process(*arguments, folder=folder)
    assert ran.status == 0, ran.error
    assert ran.rss < usual + MORE
    out.unlink(missing_ok=True)
