"""The examples for users of the library, run as they would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    """Return the output of an example."""
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_read_stream(tmp_path: Path) -> None:
    """Broken: the first thing that a user of the library tries would not work."""
    stream = str(tmp_path / "stream")
    vmferry = [sys.executable, "-m", "vmferry.tools", "send", f"file:{stream}"]
    subprocess.run([*vmferry, "--guest", "synthetic:2M,zero=50%"], capture_output=True, check=True)
    said = run("read_stream.py", stream)
    assert "RAM block synthetic.ram: 2097152 bytes" in said
    assert "device synthetic instance 0: " in said
    assert "synthetic.ram: 256 pages with content, 256 filled with one byte" in said


def test_migrate() -> None:
    """Broken: a migration inside a program would not work as the example says."""
    said = run("migrate.py")
    assert "runs at the source: False, at the destination: True" in said


def test_own_guest() -> None:
    """Broken: four methods would not be enough to move a guest of one's own."""
    said = run("own_guest.py").splitlines()
    assert said[0].startswith("hello: left at ")
    assert said[0].endswith("counts on from there: True")
    assert said[1] == "runs at the source: False, at the destination: True"


def test_drive_by_qmp() -> None:
    """Broken: a client of QEMU could not drive the service as the example says."""
    said = run("drive_by_qmp.py").splitlines()
    assert said[-2:] == ["source: completed", "target: running"]
