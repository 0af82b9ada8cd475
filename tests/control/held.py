"""A migration held in each of its states, so that a client can look at it; for any QMP end."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from vmferry.protocol.handover import Word
from vmferry.protocol.return_path import pong
from vmferry.protocol.words import ping

from tests.control.serving import Monitor, keys

HOLD = 0.3
"""Seconds that a state must last to be held."""


class Wire:
    """Destination of a migration that takes bytes, or holds them back, as the test says."""

    def __init__(self, *, socketpair: bool = False) -> None:
        if socketpair:
            ours, theirs = socket.socketpair()
            self.near, self._far = ours.detach(), theirs.detach()
        else:
            self._far, self.near = os.pipe()
            fcntl.fcntl(self.near, fcntl.F_SETPIPE_SZ, 4096)
        self._stop = os.eventfd(0)
        self._thread: threading.Thread | None = None

    def flow(self) -> None:
        """Take all bytes from now on."""
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        hello, seen = ping(Word.HELLO), b""
        while self._stop not in select.select([self._far, self._stop], [], [])[0]:
            data = os.read(self._far, 1 << 20)
            if not data:
                return
            if hello in seen + data:
                # Any destination answers a PING, and without that no guest is paused.
                os.write(self._far, pong(Word.HELLO))
            seen = data[-len(hello) :]

    def hold(self) -> None:
        """Take no bytes from now on."""
        if self._thread is not None:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            os.eventfd_read(self._stop)
            self._thread = None

    def close(self) -> None:
        """Close the end that takes bytes."""
        self.hold()
        os.close(self._far)
        os.close(self._stop)

    def migrate(self, source: Monitor) -> None:
        """Begin a migration into this wire."""
        source.qmp.send_fd_scm(self.near)
        os.close(self.near)
        source.ask("getfd", fdname="wire")
        source.ask("migrate", uri="fd:wire")


class Look:
    """Answers of `query-migrate` in each state."""

    def __init__(self, source: Monitor) -> None:
        self._source = source
        self.keys: dict[str, set[str]] = {}
        self.run_states: dict[str, str] = {}
        self.refused: list[str] = []
        """Errors for a second migration and a change of capabilities while one is cancelled."""

    def at(self, status: str, case: str | None = None) -> None:
        """Wait until the source has this status, and check that it keeps one that is no end."""
        self._source.wait_for(status)
        time.sleep(HOLD)
        answer = self._source.ask("query-migrate")
        assert answer["status"] == status, answer
        self.keys[case or status] = keys(answer)
        self.run_states[case or status] = self._source.run_state()


def look_everywhere(source: Monitor, frozen: Callable[[], AbstractContextManager[None]]) -> Look:
    """Look at a running source in every state but those that take a destination.

    `frozen`: its processes do nothing meanwhile, where a full pipe does not do that.
    """
    look = Look(source)
    source.set(xbzrle=True)
    _cancelling(look, source, frozen)
    _device(look, source)
    # The last one, since QEMU 10.0 begins no other afterwards.
    _setup(look, source)
    return look


def _setup(look: Look, source: Monitor) -> None:
    """Look at a source whose destination takes no connection."""
    with socket.socket() as listening, socket.socket() as first:
        listening.bind(("127.0.0.1", 0))
        # The one that fills the queue is never accepted, and the next one does not get in.
        listening.listen(0)
        first.connect(listening.getsockname())
        source.ask("migrate", uri=f"tcp:127.0.0.1:{listening.getsockname()[1]}")
        look.at("setup")
        source.ask("migrate_cancel")
        listening.accept()[0].close()
        look.at("cancelled", "cancelled from setup")


def _cancelling(
    look: Look, source: Monitor, frozen: Callable[[], AbstractContextManager[None]]
) -> None:
    """Look at a source that cancels while nobody takes what is written."""
    source.ask("migrate-set-parameters", max_bandwidth=400_000)
    wire = Wire()
    wire.flow()
    wire.migrate(source)
    look.at("active")
    wire.hold()
    source.ask("migrate-set-parameters", max_bandwidth=0)
    time.sleep(HOLD)
    with frozen():
        source.ask("migrate_cancel")
        look.at("cancelling")
        look.refused.append(source.error("migrate", uri="exec:cat > /dev/null"))
        wanted = [{"capability": "xbzrle", "state": False}]
        look.refused.append(source.error("migrate-set-capabilities", capabilities=wanted))
    wire.flow()
    look.at("cancelled")
    wire.close()


def _device(look: Look, source: Monitor) -> None:
    """Look at a source whose destination has the device state and leaves without an answer."""
    source.set(pause_before_switchover=True, return_path=True)
    source.ask("migrate-set-parameters", max_bandwidth=0)
    wire = Wire(socketpair=True)
    wire.flow()
    wire.migrate(source)
    look.at("pre-switchover")
    source.ask("migrate-continue", state="pre-switchover")
    look.at("device")
    wire.close()
    look.at("failed", "failed behind device")
