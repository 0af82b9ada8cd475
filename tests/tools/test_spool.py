"""mapped-ram files that come piece by piece: compressed, or through a pipe."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from vmferry.protocol.errors import StreamError
from vmferry.tools.sources.containers import unpack
from vmferry.tools.sources.spool import Spool

from tests.protocol.kinds import mapped
from tests.tools.test_containers import ALONE, save_image

PAGES = {"pc.ram": [1, 2, 600], "rom": [3]}


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for temporary copies."""
    folder = tmp_path / "copies"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.mark.parametrize("image", [False, True], ids=["alone", "libvirt"])
@pytest.mark.parametrize("name", ALONE)
def test_compressed_mapped_ram(vmferry: Any, copies: Path, name: str, image: bool) -> None:
    """Broken: a mapped-ram file, or a sparse libvirt image, that was compressed to be shipped would
    be refused by some command, read as something else, or leave its copy behind."""
    data, ram = mapped(PAGES)
    whole = ALONE[name](save_image(data, format=6) if image else data)
    path, out = vmferry.write("packed", whole), vmferry.folder / "out"
    plain = vmferry.write("plain", data)
    pairs = [f"--ram={block}={vmferry.write(block, content)}" for block, content in ram.items()]
    for feed in (None, whole):
        ran = vmferry.call("verify", "-" if feed else path, *pairs, feed=feed)
        assert ran.exit_code == 0, ran.output
    for command in (["dump", path], ["diff", path, plain], ["dump", path, "--devices"]):
        assert vmferry.call(*command).exit_code == 0
    ran = vmferry.call("extract", "-f", path, "-o", str(out))
    assert ran.exit_code == 0, ran.output
    assert out.read_bytes() == ram["pc.ram"]
    for container in ("plain", "mapped-ram"):
        assert vmferry.call("convert", "-f", path, str(out), "--to", container).exit_code == 0
        assert vmferry.call("verify", str(out), *pairs).exit_code == 0
    assert os.listdir(copies) == []


def test_no_room_for_the_copy(vmferry: Any, copies: Path) -> None:
    """Broken: a full disk would end in a traceback, or half a file be taken for a whole one."""
    data = mapped({"ram": list(range(200))})[0]
    path = vmferry.write("packed", gzip.compress(data))
    command = f"ulimit -f 100; exec {sys.executable} -m vmferry.tools verify {path}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
    assert "no room for the temporary copy" in ran.stderr
    assert f"{copies}: File too large" in ran.stderr
    assert os.listdir(copies) == []


def test_copy_is_sparse(copies: Path) -> None:  # noqa: ARG001
    """Broken: a terabyte of holes would take a terabyte of disk; or a hole be where data is."""
    data = bytearray(64 << 20)
    for place in (0, 4095, 5000, 1 << 20, (3 << 20) - 1, (64 << 20) - 1):
        data[place] = place % 255 + 1
    with Spool(io.BytesIO(bytes(data) + b"x"), 9) as copy:
        assert os.fstat(copy._fd).st_blocks * 512 < 1 << 20
        copy.seek(0)
        assert copy.readall() == bytes(9) + data + b"x"


def test_what_came_before_the_damage_is_kept() -> None:
    """Broken: compressed data that is damaged would lose what came before, or end silently."""
    content = b"QEVM\0\0\0\3" + os.urandom(3 << 20)
    data = io.BytesIO(gzip.compress(content)[: 2 << 20])
    with Spool(unpack(data, None).stream) as copy:
        found = b"".join(iter(lambda: copy.read(min(1 << 16, copy._end - copy.tell())), b""))
        assert len(found) > (2 << 20) - (1 << 17)
        assert content.startswith(found)
        with pytest.raises(StreamError, match="within its gzip data"):
            copy.read(1)
