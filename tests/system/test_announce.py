"""Announcements as they arrive at the other end of a cable, in another network namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmferry.control.announce import AnnounceParameters
from vmferry.protocol.formats.rarp import announcement

from tests.control.serving import Serving
from tests.patience import PATIENCE
from tests.qemu.machine import VMFERRY, missing, vmferry
from tests.system import capture
from tests.system.arrival import Pauses
from tests.system.link import run

pytestmark = pytest.mark.root

OWN = "02:00:00:00:00:01"
GUEST = "52:54:00:12:34:56"
ROOT = Path(__file__).parents[2]


class Cable:
    """A veth pair: `wire` at each end; at the near end one more, `idle`, that is down."""

    def __init__(self) -> None:
        self._near, self._far = (f"vmferry-{os.getpid()}-{end}" for end in ("here", "there"))
        run(f"ip netns add {self._near}")
        run(f"ip netns add {self._far}")
        pair = f"wire address {OWN} type veth peer name wire netns {self._far}"
        run(f"ip -n {self._near} link add {pair}")
        run(f"ip -n {self._near} link add idle type veth peer name other netns {self._far}")
        for end in (self._near, self._far):
            run(f"ip -n {end} link set wire up")
        self._capturing: subprocess.Popen[str] | None = None

    @property
    def inside(self) -> tuple[str, ...]:
        """Return the words before a command that is to run at the near end."""
        return ("ip", "netns", "exec", self._near)

    def near(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run at the near end, to its end."""
        return subprocess.run(
            [*self.inside, *command],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def listen(self) -> None:
        """Listen at the far end from now on."""
        script = [sys.executable, "-m", capture.__name__, "wire"]
        self._capturing = subprocess.Popen(
            ["ip", "netns", "exec", self._far, *script],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._capturing.stdout is not None
        assert self._capturing.stdout.readline() == "listening\n"

    def heard(self, least: int = 0) -> list[tuple[float, bytes]]:
        """Wait for so many frames; return them with their times, and those of a further round."""
        assert self._capturing is not None
        assert self._capturing.stdout is not None
        lines = [self._capturing.stdout.readline() for _ in range(least)]
        time.sleep(0.6)
        self._capturing.terminate()
        lines += self._capturing.stdout.readlines()
        self._capturing.stdout.close()
        self._capturing.wait()
        parts = [line.split() for line in lines]
        return [(float(seconds), bytes.fromhex(frame)) for seconds, frame in parts]

    def close(self) -> None:
        """Take the cable down."""
        if self._capturing is not None:
            self._capturing.kill()
            self._capturing.wait()
        run(f"ip netns delete {self._near}")
        run(f"ip netns delete {self._far}")


@pytest.fixture
def cable() -> Iterator[Cable]:
    if shutil.which("ip") is None:
        missing("ip (iproute2)")
    if os.geteuid():
        missing("a root user")
    made = Cable()
    yield made
    made.close()


@pytest.fixture
def stream(tmp_path: Path) -> str:
    """Return the URI of a saved guest."""
    uri = f"file:{tmp_path}/stream"
    assert vmferry("send", uri, "--guest", "synthetic:1M,orphan=0").returncode == 0
    return uri


def receive(cable: Cable, stream: str, *options: str) -> subprocess.CompletedProcess[str]:
    guest = f"dir:{Path(stream.removeprefix('file:')).parent}/guest"
    return cable.near(*VMFERRY, "receive", stream, "--guest", guest, *options)


def test_after_a_migration(cable: Cable, stream: str) -> None:
    """Broken: after a migration the guest's traffic would still go to where it was."""
    frames = [announcement(bytes.fromhex(mac.replace(":", ""))) for mac in (OWN, GUEST)]
    pauses = Pauses(AnnounceParameters().pauses())
    for _ in range(Pauses.TRIES):
        cable.listen()
        ran = receive(cable, stream, "--announce", "wire", "--announce", f"wire={GUEST}")
        assert ran.returncode == 0, ran.stderr
        heard = cable.heard()
        assert [frame for _, frame in heard] == frames * 5
        pauses.add([seconds for seconds, frame in heard if frame == frames[1]])
        if pauses.as_wanted():
            return
        shutil.rmtree(Path(stream.removeprefix("file:")).with_name("guest"))
    pytest.fail(str(pauses))


def test_failed_migration(cable: Cable, stream: str) -> None:
    """Broken: traffic would go to a guest that is not there."""
    cable.listen()
    path = Path(stream.removeprefix("file:"))
    path.write_bytes(path.read_bytes()[:-100])
    assert receive(cable, stream, "--announce", "wire").returncode == 1
    assert cable.heard() == []


def test_interface_that_is_down(cable: Cable, stream: str) -> None:
    """Broken: a guest that arrived would be called lost, or the other interface not told."""
    cable.listen()
    ran = receive(cable, stream, "--announce", "idle", "--announce", "wire")
    assert ran.returncode == 0
    assert ran.stderr.splitlines()[-1] == "receiving: announcing on idle: Network is down"
    assert len(cable.heard(5)) == 5


def test_interface_that_is_not_there(cable: Cable, stream: str) -> None:
    """Broken: a typing error would be found out when the guest has come, and lost its network."""
    ran = receive(cable, stream, "--announce", "wier")
    assert ran.returncode == 1
    assert ran.stderr == "vmferry: announcing on 'wier': no such interface here\n"
    assert not Path(stream.removeprefix("file:")).with_name("guest").exists()


def test_interface_without_addresses(cable: Cable, stream: str) -> None:
    """Broken: frames would go out that the interface takes for something else."""
    ran = receive(cable, stream, "--announce", "lo")
    assert ran.returncode == 1
    assert ran.stderr == "vmferry: announcing on lo: not an Ethernet interface\n"


STOPPED = """
import time
from vmferry.control.announce import AnnounceParameters, Announcer, Interface
announcer = Announcer([Interface("wire")], AnnounceParameters(400, 400, 1000, 1))
before = time.monotonic()
announcer.start()
print(time.monotonic() - before)
time.sleep(1)
announcer.stop()
announcer.stop()
print(time.monotonic() - before)
"""


def test_stop(cable: Cable) -> None:
    """Broken: a caller would have to wait for the last round, however long that takes."""
    cable.listen()
    ran = cable.near(sys.executable, "-c", STOPPED)
    assert ran.returncode == 0, ran.stderr
    started, stopped = map(float, ran.stdout.split())
    assert started < stopped / 2 < 30
    # A thousand without it: after the first each 0.4 s.
    assert 1 <= len(cable.heard()) < 100


def test_of_a_service(cable: Cable, stream: str, tmp_path: Path) -> None:
    """Broken: a guest that a service received would not be reached; or one that stands still."""
    cable.listen()
    options = ("--incoming", stream, "--paused", "--announce", "wire")
    service = Serving(tmp_path / "service", "synthetic:", *options, inside=cable.inside)
    try:
        service.wait_for("completed")
        assert cable.heard() == []
        cable.listen()
        service.ask("migrate-set-parameters", announce_rounds=3)
        service.ask("cont")
        assert len(cable.heard(3)) == 3
        cable.listen()
        schedule = {"initial": 10, "max": 20, "rounds": 2, "step": 10}
        service.ask("announce-self", **schedule)
        assert "not one that the service" in service.error(
            "announce-self", **schedule, interfaces=["wier"]
        )
        assert "announce-rounds 1001" in service.error(
            "announce-self", **(schedule | {"rounds": 1001})
        )
        assert [frame for _, frame in cable.heard(2)] == [
            announcement(bytes.fromhex(OWN.replace(":", "")))
        ] * 2
    finally:
        service.stop()
