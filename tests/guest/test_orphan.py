"""Test what becomes of a synthetic guest whose controller is killed (laws 4 and 5)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until

CONTROLLER = """
import sys
from vmferry.guest.parts import BlockLayout
from vmferry.guest.open import open_guest
guest = open_guest(f"synthetic:1M,dirty-rate=8M,hot=100%,heartbeat=source,orphan={sys.argv[2]}")
incoming = open_guest(f"synthetic:heartbeat=incoming,orphan={sys.argv[2]}")
for step in sys.argv[1].split():
    if step == "load":
        layout = [BlockLayout(b.name, b.length, b.page_size) for b in guest.blocks]
        incoming.prepare(guest.machine, layout)
        incoming.load_devices(guest.machine, guest.save_devices())
        print(incoming.pid, flush=True)
    elif step == "throttle":
        guest.throttle(99)
    elif step == "quit":
        sys.exit()
    else:
        getattr(guest, step)()
print(guest.pid, flush=True)
sys.stdin.read()
"""


def orphan(folder: Path, steps: str, lives_for: float = 5.0) -> list[psutil.Process]:
    """Return a guest after these steps, whose controller was then killed."""
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, steps, str(lives_for)],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as controller:
        assert controller.stdout is not None
        count = 2 if "load" in steps.split() else 1
        guests = [psutil.Process(int(controller.stdout.readline())) for _ in range(count)]
        controller.kill()
    return guests


def beat(file: Path) -> tuple[int, bool]:
    """Wait for the guest's next beat; return its counter, and whether it says that it runs."""
    seen = _written_at(file)
    wait_until(lambda: _written_at(file) != seen)
    _, counter, running = file.read_text().split()
    return int(counter), running == "1"


def _written_at(file: Path) -> int:
    """Return when the guest wrote its beat; 0 before the first, which some never live to see."""
    return file.stat().st_mtime_ns if file.exists() else 0


def wait_gone(guest: psutil.Process) -> None:
    """Wait until the guest has ended; fail long after it should have ended itself."""
    psutil.wait_procs([guest], timeout=PATIENCE)
    assert not guest.is_running() or guest.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "steps",
    ["pause", "pause commit resume pause", ""],
)
def test_source(tmp_path: Path, steps: str) -> None:
    """Broken: a killed sender would leave a guest that nobody resumes."""
    (guest,) = orphan(tmp_path, steps)
    beat(tmp_path / "source")
    first, running = beat(tmp_path / "source")
    assert running
    later, _ = beat(tmp_path / "source")
    assert later > first
    wait_gone(guest)


def test_source_that_was_given_up(tmp_path: Path) -> None:
    """Broken: a guest that was handed over would run on both sides, or its process stay behind."""
    (guest,) = orphan(tmp_path, "pause commit", lives_for=600)
    wait_gone(guest)


def test_orphan_is_not_slowed_down(tmp_path: Path) -> None:
    """Broken: a killed sender would leave its guest at a hundredth of its speed."""
    (guest,) = orphan(tmp_path, "throttle")
    beat(tmp_path / "source")
    first, _ = beat(tmp_path / "source")
    later = first
    # A hundredth of 8 MiB/s are 20 pages a second: 100 in the 5 s that it lives.
    while later - first <= 200 and guest.is_running():
        later, _ = beat(tmp_path / "source")
    assert later - first > 200
    wait_gone(guest)


def test_incoming_does_not_start(tmp_path: Path) -> None:
    """Broken: a receiver killed before the hand-over would start a guest that the source runs."""
    incoming, guest = orphan(tmp_path, "pause load", 12.0)
    assert beat(tmp_path / "source")[1]
    # Nobody needs it, so it ends; its last words are that it does not run.
    wait_gone(incoming)
    assert (tmp_path / "incoming").read_text().split()[2] == "0"
    wait_gone(guest)


def test_orderly_end_leaves_no_guest(tmp_path: Path) -> None:
    """Broken: each finished command would leave a process behind for half a minute."""
    subprocess.run(
        [sys.executable, "-c", CONTROLLER, "pause quit", "1.5"],
        cwd=tmp_path,
        check=True,
        timeout=PATIENCE,
    )
    if (tmp_path / "source").exists():
        pid = int((tmp_path / "source").read_text().split()[0])
        assert not psutil.pid_exists(pid)
