"""Test who has the guest when things break between the end of the stream and the answer (law 5)."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe

import pytest
from vmferry.guest.errors import MigrationCancelledError, MigrationError
from vmferry.guest.handing_out import ALL_SENT, SourceJob
from vmferry.guest.program import ProgramGuest
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol.events import Command
from vmferry.protocol.handover import Word
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.return_path import pong, shut
from vmferry.protocol.states import MigrationStatus
from vmferry.protocol.wire.marks import CommandType
from vmferry.protocol.words import ping
from vmferry.sender.coordinator import Sender
from vmferry.sender.errors import UnconfirmedError

from tests.patience import PATIENCE, stop_process

Last = Callable[["Destination"], None]


class Destination:
    """Reads the stream to its end, then does what `last` says with the connection."""

    def __init__(self, last: Last, *, confirming: bool) -> None:
        self._last = last
        self._server = socket.create_server(("127.0.0.1", 0))
        self._hello = pong(Word.CONFIRMS) * confirming + pong(Word.HELLO)
        self._reader = StreamReader()
        self.uri = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self.connection: socket.socket
        self.after = b""
        """Bytes that the source sent behind the end of its stream."""
        self.sender: Sender
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.connection, _ = self._server.accept()
        with self.connection:
            while not self._reader.whole:
                found = self._reader.feed(self.connection.recv(1 << 16))
                if any(isinstance(e, Command) and e.command == CommandType.PING for e in found):
                    self.connection.sendall(self._hello)
            self._last(self)
            with suppress(ConnectionResetError):
                while data := self.connection.recv(100):
                    self.after += data

    def answer(self, data: bytes) -> None:
        self.connection.sendall(data)

    def wait_for(self, data: bytes) -> None:
        """Wait until the source has sent this behind the end of its stream."""
        while data not in self.after:
            more = self.connection.recv(100)
            assert more
            self.after += more

    def close(self) -> None:
        # A source that was left alone keeps its connection.
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)
        self._thread.join(20)
        self._server.close()


@pytest.fixture
def source() -> Iterator[SyntheticGuest]:
    guest = SyntheticGuest.parse("2M,dirty-rate=1M")
    yield guest
    guest.close()


def hand_over(source: SyntheticGuest, last: Last, *, confirming: bool = True) -> Destination:
    destination = Destination(last, confirming=confirming)
    destination.sender = Sender(source, destination.uri)
    try:
        destination.sender.run()
    finally:
        destination.close()
    return destination


def state(destination: Destination) -> MigrationStatus:
    return destination.sender.states.state


def test_stock_answer_ends_it(source: SyntheticGuest) -> None:
    """Broken: a source whose destination runs the guest would run it, too, or send it a word."""
    destination = hand_over(source, lambda d: d.answer(shut(0)), confirming=False)
    assert state(destination) is MigrationStatus.COMPLETED
    assert not source.running
    assert destination.after == b""


def test_confirmed(source: SyntheticGuest) -> None:
    """Broken: a destination that waits for the word would never start its guest."""

    def last(destination: Destination) -> None:
        destination.answer(shut(0))
        destination.wait_for(ping(Word.CONFIRM))
        destination.answer(pong(Word.CONFIRM))

    destination = hand_over(source, last)
    assert state(destination) is MigrationStatus.COMPLETED
    assert not source.running


def test_refused_after_the_promise(source: SyntheticGuest) -> None:
    """Broken: a guest that died as it was started at the destination would run nowhere."""

    def last(destination: Destination) -> None:
        destination.answer(shut(0))
        destination.wait_for(ping(Word.CONFIRM))
        destination.answer(shut(1))
        destination.wait_for(ping(Word.ABORT))

    with pytest.raises(MigrationError, match="could not load"):
        hand_over(source, last)
    assert source.running


def test_link_breaks_after_the_guest_was_given_up(source: SyntheticGuest) -> None:
    """Broken: the guest would run at both ends, as the destination may have started it."""

    def last(destination: Destination) -> None:
        destination.answer(shut(0))
        destination.wait_for(ping(Word.CONFIRM))
        destination.connection.shutdown(socket.SHUT_RDWR)

    with pytest.raises(UnconfirmedError, match="did not confirm"):
        hand_over(source, last)
    assert not source.running


@pytest.mark.parametrize("confirming", [True, False])
def test_refusal(source: SyntheticGuest, confirming: bool) -> None:
    """Broken: a destination that could not load the guest would cost it."""
    with pytest.raises(MigrationError, match="could not load"):
        hand_over(source, lambda d: d.answer(shut(1)), confirming=confirming)
    assert source.running


@pytest.mark.parametrize("confirming", [True, False])
def test_no_answer(source: SyntheticGuest, confirming: bool) -> None:
    """Broken: a destination that dies before its answer would cost the guest."""
    with pytest.raises(MigrationError, match="before it answered"):
        hand_over(
            source,
            lambda d: d.connection.shutdown(socket.SHUT_RDWR),
            confirming=confirming,
        )
    assert source.running


@pytest.mark.parametrize("answer", [b"", shut(0)[:5]])
def test_cancel_while_the_answer_is_awaited(source: SyntheticGuest, answer: bytes) -> None:
    """Broken: a destination that answers nothing, or half, would hold the guest for ever."""

    def last(destination: Destination) -> None:
        destination.answer(answer)
        destination.sender.cancel()
        destination.wait_for(ping(Word.ABORT))

    with pytest.raises(MigrationCancelledError):
        hand_over(source, last)
    assert source.running


def test_answer_followed_by_more(source: SyntheticGuest) -> None:
    """Broken: an answer that arrives with other bytes would be lost, and the guest run twice."""

    def last(destination: Destination) -> None:
        destination.answer(shut(0) + shut(1) + b"x" * 5000)

    assert state(hand_over(source, last, confirming=False)) is MigrationStatus.COMPLETED
    assert not source.running


def test_answer_that_comes_too_early(source: SyntheticGuest) -> None:
    """Broken: a guest would be given up to somebody who does not have it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(shut(0))
                with suppress(ConnectionResetError):
                    while connection.recv(1 << 16):
                        continue

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(MigrationError, match="before it had"):
            Sender(source, f"tcp:127.0.0.1:{server.getsockname()[1]}").run()
        thread.join(20)
    assert source.running


def test_guest_that_dies_is_started_at_the_destination(source: SyntheticGuest) -> None:
    """Broken: a guest that the destination has whole would be lost with its process here."""

    def last(destination: Destination) -> None:
        os.kill(source.pid, signal.SIGKILL)
        destination.answer(shut(0))
        destination.wait_for(ping(Word.CONFIRM))
        destination.answer(pong(Word.CONFIRM))

    assert state(hand_over(source, last)) is MigrationStatus.COMPLETED


class StoppedInTime(SyntheticGuest):
    """A guest whose process is stopped just before it is asked to hand the guest over."""

    sender: Sender

    def begin_handing_out(self, fd: int, job: SourceJob) -> Connection:
        stop_process(self.pid)
        self.sender.leave()
        return super().begin_handing_out(fd, job)


def test_guest_whose_process_was_stopped_before_is_left_alone() -> None:
    """Broken: a command that is told to end would wait for a stopped process without end."""
    guest = StoppedInTime.parse("2M,dirty-rate=1M")
    assert isinstance(guest, StoppedInTime)
    destination = Destination(lambda _: None, confirming=True)
    guest.sender = Sender(guest, destination.uri)
    try:
        with pytest.raises(UnconfirmedError, match="left alone"):
            guest.sender.run()
        os.kill(guest.pid, signal.SIGCONT)
    finally:
        guest.close()
        destination.close()


def test_guest_whose_process_is_stopped_is_left_alone(source: SyntheticGuest) -> None:
    """Broken: a command that is told to end would wait for a stopped process without end."""

    def last(destination: Destination) -> None:
        stop_process(source.pid)
        destination.sender.leave()

    started = time.monotonic()
    with pytest.raises(UnconfirmedError, match="left alone"):
        hand_over(source, last)
    assert time.monotonic() - started < PATIENCE
    os.kill(source.pid, signal.SIGCONT)


class HandedByAnother(ProgramGuest):
    """A guest that lives on when whoever hands it over dies at once: `sends` and `resumes` before.

    `sends`: the end of the stream, or nothing. `resumes`: lets the guest run again.
    """

    def __init__(self, *, sends: bool, resumes: bool = False) -> None:
        super().__init__("another", {"ram": 1 << 20})
        self._sends, self._resumes = sends, resumes
        self.resume()

    def start(self) -> None:
        """Do nothing: the guest writes nothing."""

    def stop(self) -> None:
        """Do nothing: the guest writes nothing."""

    def save(self) -> bytes:
        return b""

    def load(self, state: bytes) -> None:
        del state

    def begin_handing_out(self, fd: int, job: SourceJob) -> Connection:
        ours, theirs = Pipe()
        with theirs, socket.socket(fileno=fd) as channel:
            if self._sends:
                channel.sendall(job.closing)
                theirs.send(ALL_SENT)
            if self._resumes:
                self.resume()
        return ours

    def successor(self) -> HandedByAnother:
        return self


def migrate(guest: HandedByAnother, last: Last) -> Destination:
    destination = Destination(last, confirming=True)
    destination.sender = Sender(guest, destination.uri)
    try:
        destination.sender.run()
    finally:
        destination.close()
        guest.close()
    return destination


def test_guest_that_lives_on_is_given_up_to_a_destination_that_has_it() -> None:
    """Broken: nobody would run a guest whose handover was in the hands of a process that died."""

    def last(destination: Destination) -> None:
        destination.answer(shut(0))
        destination.wait_for(ping(Word.CONFIRM))
        destination.answer(pong(Word.CONFIRM))

    guest = HandedByAnother(sends=True)
    assert state(migrate(guest, last)) is MigrationStatus.COMPLETED
    assert not guest.running


def test_guest_that_lives_on_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a guest would stand still for good if the process died that handed it over."""
    monkeypatch.setattr("vmferry.sender.handover.UNSURE_TIMEOUT", 0.1)
    guest = HandedByAnother(sends=False)
    running: list[bool] = []
    guest.add_listener(lambda event: running.append(event == "resume"))
    with pytest.raises(MigrationError):
        migrate(guest, lambda _: None)
    assert running[:2] == [False, True]


def test_guest_that_was_let_run_is_not_started_elsewhere() -> None:
    """Broken: the guest would run at both ends, if whoever let it run here died after that."""
    said: list[bytes] = []

    def last(destination: Destination) -> None:
        destination.answer(shut(0))
        with suppress(ConnectionResetError):
            said.append(destination.connection.recv(100))

    with pytest.raises(MigrationError, match="that handed the guest over died"):
        migrate(HandedByAnother(sends=True, resumes=True), last)
    assert b"".join(said) in (b"", ping(Word.ABORT))
