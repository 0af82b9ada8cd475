"""Test both sides of a handover on a real connection, one event at a time (law 5)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any

import pytest
from vmferry.guest import handing_out, watching
from vmferry.guest.errors import GuestError
from vmferry.guest.handing import CANCEL, LEAVE, Outcome
from vmferry.guest.handing_in import DestinationJob, hand_in
from vmferry.guest.handing_out import ALL_SENT, SourceJob, hand_out
from vmferry.protocol.handover import Destination, Peer, Source, Word
from vmferry.protocol.return_path import pong, shut
from vmferry.protocol.words import word_on_wire

from tests.patience import PATIENCE

CLOSING = b"\0the end"
CONFIRM = word_on_wire(Word.CONFIRM, framed=False)
ABORT = word_on_wire(Word.ABORT, framed=False)


class Holder:
    """A guest that notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = False

    def commit(self) -> None:
        self.done.append("commit")

    def resume(self) -> None:
        self.done.append("resume")

    def complete(self, *, running: bool) -> None:
        if self.fails:
            raise GuestError("the disk is gone")
        self.done.append(f"complete {running}")


class Under:
    """One side under test in a thread; the test is the other side, and the coordinator."""

    def __init__(self, run: Callable[[int, Connection], Outcome[Any]]) -> None:
        self.peer, ours = socket.socketpair()
        self.peer.settimeout(PATIENCE)
        self.control, theirs = Pipe()
        self.outcome: Outcome[Any] | None = None
        self._thread = threading.Thread(
            target=self._run, args=(run, ours.detach(), theirs), daemon=True
        )
        self._thread.start()

    def _run(
        self, run: Callable[[int, Connection], Outcome[Any]], fd: int, theirs: Connection
    ) -> None:
        self.outcome = run(fd, theirs)

    def read(self, data: bytes) -> None:
        """Fail unless exactly this arrives next."""
        got = b""
        while len(got) < len(data):
            more = self.peer.recv(len(data) - len(got))
            assert more
            got += more
        assert got == data

    def end(self) -> Outcome[Any]:
        self._thread.join(20)
        assert self.outcome is not None
        return self.outcome

    def close(self) -> None:
        self.peer.close()
        self._thread.join(20)
        self.control.close()


@pytest.fixture
def holder() -> Holder:
    return Holder()


@pytest.fixture
def sides() -> Iterator[list[Under]]:
    made: list[Under] = []
    yield made
    for side in made:
        side.close()


def source(sides: list[Under], holder: Holder, peer: Peer, *, return_path: bool = True) -> Under:
    job = SourceJob(CLOSING, peer, return_path, True, CONFIRM, ABORT)
    sides.append(Under(lambda fd, control: hand_out(fd, job, holder, control)))
    return sides[-1]


def destination(sides: list[Under], holder: Holder, peer: Peer, **more: Any) -> Under:
    job = DestinationJob(peer, True, True, CONFIRM, ABORT, **more)
    sides.append(Under(lambda fd, control: hand_in(fd, job, holder, control)))
    return sides[-1]


def test_source_times_out(
    sides: list[Under], holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a destination that reads all and says nothing holds the guest for ever."""
    monkeypatch.setattr(handing_out, "ANSWER_TIMEOUT", 0.2)
    side = source(sides, holder, Peer.CONFIRMING)
    side.read(CLOSING + ABORT)
    assert side.end().state is Source.STAYED
    assert holder.done == ["resume"]


def test_source_never_times_out_on_a_stock_destination(
    sides: list[Under], holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: the guest runs twice, as a stock destination runs it before it answers."""
    monkeypatch.setattr(handing_out, "ANSWER_TIMEOUT", 0.2)
    side = source(sides, holder, Peer.STOCK)
    side.read(CLOSING)
    time.sleep(1)
    assert side.outcome is None
    side.peer.sendall(shut(0))
    assert side.end().state is Source.GONE
    assert holder.done == ["commit"]


def test_source_whose_leader_dies(sides: list[Under], holder: Holder) -> None:
    """Broken: a killed command leaves a paused guest behind, or one that runs twice."""
    side = source(sides, holder, Peer.CONFIRMING)
    side.read(CLOSING)
    side.control.close()
    side.read(ABORT)
    assert side.end().state is Source.STAYED


def test_source_whose_leader_dies_asks_a_stock_destination(
    sides: list[Under], holder: Holder
) -> None:
    """Broken: the guest runs twice, as the destination had it when the command died."""
    side = source(sides, holder, Peer.STOCK)
    side.read(CLOSING)
    side.control.close()
    side.peer.sendall(shut(0))
    assert side.end().state is Source.GONE
    assert "resume" not in holder.done


def test_source_looks_at_the_channel_before_it_is_cancelled(
    sides: list[Under], holder: Holder
) -> None:
    """Broken: an answer that was there is overlooked, and the guest runs twice."""
    side = source(sides, holder, Peer.STOCK)
    side.read(CLOSING)
    side.peer.sendall(shut(0))
    side.control.send(CANCEL)
    assert side.end().state is Source.GONE


def test_source_without_return_path(sides: list[Under], holder: Holder) -> None:
    """Broken: a guest is given up before its stream has left, or never."""
    side = source(sides, holder, Peer.STOCK, return_path=False)
    side.read(CLOSING)
    assert side.end().state is Source.GONE
    assert (side.control.recv(), holder.done) == (ALL_SENT, ["commit"])


def test_source_leaves_unconfirmed(sides: list[Under], holder: Holder) -> None:
    """Broken: a command cannot end for as long as the destination is stopped."""
    side = source(sides, holder, Peer.CONFIRMING)
    side.read(CLOSING)
    side.peer.sendall(shut(0))
    side.read(CONFIRM)
    side.control.send(CANCEL)
    side.control.send(LEAVE)
    assert side.end().state is Source.UNCONFIRMED
    assert holder.done == ["commit"]


def test_destination_waits_for_as_long_as_it_takes(sides: list[Under], holder: Holder) -> None:
    """Broken: a destination acts on a timeout, too, and the guest runs twice."""
    side = destination(sides, holder, Peer.CONFIRMING)
    side.read(shut(0))
    time.sleep(2.5)
    assert (side.outcome, holder.done) == (None, [])
    side.peer.sendall(CONFIRM)
    side.read(pong(Word.CONFIRM))
    side.peer.close()
    assert side.end().state is Destination.RUNS


def test_destination_whose_leader_dies(sides: list[Under], holder: Holder) -> None:
    """Broken: the guest of a killed command never starts, though its source gave it up."""
    side = destination(sides, holder, Peer.CONFIRMING)
    side.read(shut(0))
    side.control.close()
    side.peer.sendall(CONFIRM)
    side.read(pong(Word.CONFIRM))
    assert holder.done == ["complete True"]


def test_destination_that_cannot_start(sides: list[Under], holder: Holder) -> None:
    """Broken: the source is not asked to go on with a guest that did not start."""
    holder.fails = True
    side = destination(sides, holder, Peer.CONFIRMING)
    side.read(shut(0))
    side.peer.sendall(CONFIRM)
    side.read(shut(1))
    side.peer.close()
    assert side.end() == Outcome(Destination.KEPT, "the disk is gone")


def test_destination_gives_the_guest_back(sides: list[Under], holder: Holder) -> None:
    """Broken: a cancelled destination starts the guest, or throws away the only copy."""
    side = destination(sides, holder, Peer.CONFIRMING)
    side.read(shut(0))
    side.control.send(CANCEL)
    side.read(shut(1))
    side.peer.sendall(CONFIRM)
    time.sleep(0.3)
    assert (side.outcome, holder.done) == (None, [])
    side.peer.sendall(ABORT)
    assert side.end().state is Destination.RETURNED


def test_stream_that_goes_on_behind_the_promise(sides: list[Under], holder: Holder) -> None:
    """Broken: a guest of which only a part is here would start, and its source give it up."""
    side = destination(sides, holder, Peer.CONFIRMING)
    side.read(shut(0))
    side.peer.sendall(b"the rest" + CONFIRM)
    side.read(shut(1))
    side.peer.close()
    assert side.end().state is Destination.KEPT
    assert holder.done == []


def test_answer_before_the_end_was_sent(sides: list[Under], holder: Holder) -> None:
    """Broken: a guest is given up to an end that a guest has deceived about its stream's end."""
    job = SourceJob(bytes(64 << 20), Peer.CONFIRMING, True, True, CONFIRM, ABORT)
    sides.append(Under(lambda fd, control: hand_out(fd, job, holder, control)))
    side = sides[-1]
    side.read(bytes(1000))
    side.peer.sendall(shut(0))
    assert side.end().state is Source.STAYED
    assert holder.done == ["resume"]


def test_destination_that_died_with_its_answer_on_the_way(holder: Holder) -> None:
    """Broken: the guest is given to a destination that is known to be gone, and runs nowhere."""
    peer, ours = socket.socketpair()
    peer.sendall(shut(0))
    peer.shutdown(socket.SHUT_WR)
    job = SourceJob(CLOSING, Peer.CONFIRMING, True, True, CONFIRM, ABORT)
    control, theirs = Pipe()
    with peer, control:
        outcome = hand_out(ours.detach(), job, holder, theirs)
    assert (outcome.state, holder.done) == (Source.STAYED, ["resume"])
    assert "before it was asked to start" in outcome.reason


def test_cancel_after_the_guest_was_given_up(
    sides: list[Under], holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: migrate_cancel would be ignored for ever where a destination confirms nothing."""
    monkeypatch.setattr(watching, "CANCEL_AFTER", 0.3)
    side = source(sides, holder, Peer.CONFIRMING)
    side.read(CLOSING)
    side.peer.sendall(shut(0))
    side.read(CONFIRM)
    wishes = watching.Wishes(cancel=lambda: True, leave=lambda: False)
    outcome = watching.watch(side.control, wishes, lambda: None)
    assert (outcome.state, holder.done) == (Source.UNCONFIRMED, ["commit"])


def test_words_in_pieces(sides: list[Under], holder: Holder) -> None:
    """Broken: a word that arrives byte by byte is no word, or keeps a processor busy."""
    side = destination(sides, holder, Peer.CONFIRMING)
    side.read(shut(0))
    for byte in CONFIRM:
        side.peer.sendall(bytes([byte]))
        time.sleep(0.02)
    side.read(pong(Word.CONFIRM))
    assert holder.done == ["complete True"]


def test_second_promise_is_not_sent(sides: list[Under], holder: Holder) -> None:
    """Broken: who takes over from a dead process confuses a stock source with a second answer."""
    side = destination(sides, holder, Peer.STOCK, promised=True)
    side.peer.shutdown(socket.SHUT_WR)
    assert side.end().state is Destination.RUNS
    assert side.peer.recv(100) == b""
