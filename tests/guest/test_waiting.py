"""A synthetic guest whose process waits for the source's word while its command is dead."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from vmferry.guest.errors import GuestError
from vmferry.guest.handing_in import DestinationJob
from vmferry.guest.parts import BlockLayout
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.synthetic_door import knock
from vmferry.protocol.handover import Peer, Word
from vmferry.protocol.words import ping

from tests.patience import PATIENCE, wait_until

SHUT_SIZE = 8
"""Bytes of the message SHUT on the return path."""


class Waiting:
    """A guest that has arrived and promised so; `link` is the source's end of the connection."""

    def __init__(self, folder: Path) -> None:
        self._source = SyntheticGuest.parse("1M")
        self._source.pause()
        self._beat = folder / "beat"
        guest = SyntheticGuest.parse(f"heartbeat={self._beat},orphan=60")
        blocks = [BlockLayout(b.name, b.length, b.page_size) for b in self._source.blocks]
        guest.prepare(self._source.machine, blocks)
        guest.load_devices(self._source.machine, self._source.save_devices())
        self.link, theirs = socket.socketpair()
        self.link.settimeout(PATIENCE)
        confirm, abort = ping(Word.CONFIRM), ping(Word.ABORT)
        job = DestinationJob(Peer.CONFIRMING, True, True, confirm, abort)
        connection = guest.begin_handing_in(theirs.detach(), job)
        assert len(self.link.recv(100)) == SHUT_SIZE
        self.pid = guest.pid
        connection.close()
        # As if its command had been killed.
        guest.release()

    @property
    def runs(self) -> bool:
        """Return whether the guest was running when it last wrote its heartbeat."""
        return self._beat.exists() and self._beat.read_text().split()[2] == "1"

    @property
    def listens(self) -> bool:
        """Return whether the guest's process listens for a user."""
        sockets = Path("/proc/net/unix").read_text(errors="replace")
        return f"@vmferry-guest-{self.pid}\n" in sockets

    def wait_door(self) -> None:
        """Wait until the guest's process listens for a user."""
        wait_until(lambda: self.listens)

    def close(self) -> None:
        """End both guests."""
        self.link.close()
        self._source.close()
        if psutil.pid_exists(self.pid):
            psutil.Process(self.pid).kill()


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    """Return a guest that waits for the word."""
    made = Waiting(tmp_path)
    yield made
    made.close()


def test_user_ends_the_wait(waiting: Waiting) -> None:
    """Broken: on a link that lives and carries nothing, nobody could ever take the guest up."""
    waiting.wait_door()
    knock(waiting.pid)
    wait_until(lambda: waiting.runs)
    # The link was broken first: no word can arrive any more, and the source sees that.
    assert waiting.link.recv(100) == b""


def test_guest_that_went_back_is_not_taken_up(waiting: Waiting) -> None:
    """Broken: a user could start a guest here that its source runs."""
    waiting.wait_door()
    waiting.link.sendall(ping(Word.ABORT))
    assert waiting.link.recv(100) == b""
    with pytest.raises(GuestError, match=r"keeps no guest|does not let its guest run"):
        knock(waiting.pid)
    assert not waiting.runs


def test_guest_that_runs_waits_for_nobody(waiting: Waiting) -> None:
    """Broken: a guest that runs would still offer to be taken up, as if it were paused."""
    waiting.wait_door()
    waiting.link.sendall(ping(Word.CONFIRM))
    wait_until(lambda: waiting.runs and not waiting.listens)
