"""`vmferry ctl` with peers that are easy to steer; with real ones: `tests/qemu/test_ctl.py`."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.tools.client import ctl
from vmferry.tools.client.ctl import ArgumentError, Watched, outcome, parse_address, parse_arguments

from tests.patience import PATIENCE

GREETING = b'{"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}}\n'
Answer = Callable[[str], "dict[str, Any] | bytes"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("qmp", "qmp"),
        ("/a:b/qmp:1", "/a:b/qmp:1"),
        ("unix:a:1", "a:1"),
        ("host:4444", ("host", 4444)),
        (":4444", ("localhost", 4444)),
        ("tcp:[::1]:4444", ("::1", 4444)),
        ("[::1]:4444", ("::1", 4444)),
    ],
)
def test_address(text: str, address: object) -> None:
    """Broken: a command would go to another guest, or to none."""
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host:", "host:99999", "::1:4444", "unix:"])
def test_no_address(text: str) -> None:
    """Broken: a mistyped address would be a traceback."""
    with pytest.raises(ArgumentError):
        parse_address(text)


def test_arguments() -> None:
    """Broken: peers would refuse values for their type, or take text for numbers."""
    pairs = ["a=1", "b=text", "c=true", "d={}", "e.f=[1]", "e.g.h=", "i==", 'j="1"', "k=NaN"]
    assert parse_arguments([*pairs, "l=1e999"]) == {
        "a": 1,
        "b": "text",
        "c": True,
        "d": {},
        "e": {"f": [1], "g": {"h": ""}},
        "i": "=",
        "j": "1",
        "k": "NaN",
        "l": "1e999",
    }


@pytest.mark.parametrize(
    "pairs", [["a"], ["=1"], ["a.=1"], [".a=1"], ["a=1", "a=2"], ["a=1", "a.b=2"], ["a.b=1", "a=2"]]
)
def test_malformed_arguments(pairs: list[str], vmferry: Any) -> None:
    """Broken: a command would run with other arguments than were meant."""
    result = vmferry.call("ctl", "/nonexistent", "stop", *pairs)
    assert result.exit_code == 2
    assert repr(pairs[-1]) in result.stderr


@given(st.dictionaries(st.from_regex(r"[a-z-]+", fullmatch=True), st.integers() | st.booleans()))
def test_every_value_comes_through(arguments: dict[str, Any]) -> None:
    """Broken: a value would change on its way."""
    pairs = [f"{name}={json.dumps(value)}" for name, value in arguments.items()]
    assert parse_arguments(pairs) == arguments


class Peer:
    """Greets one client, and answers commands by their names; bytes are sent as they are."""

    def __init__(self, path: Path, answer: Answer, greeting: bytes = GREETING) -> None:
        self.path = str(path)
        self.heard: list[dict[str, Any]] = []
        self._answer = answer
        self._greeting = greeting
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._server.accept()[0] as peer:
            peer.sendall(self._greeting)
            # Messages end in no newline, but each waits for the answer to the one before.
            while text := peer.recv(1 << 16):
                message = json.loads(text)
                negotiating = message["execute"] == "qmp_capabilities"
                self.heard.append(message)
                answer = {"return": {}} if negotiating else self._answer(message["execute"])
                if not answer:
                    return
                if isinstance(answer, dict):
                    answer |= {"id": message["id"]} if "id" in message else {}
                    answer = json.dumps(answer).encode() + b"\n"
                peer.sendall(answer)

    def close(self) -> None:
        """Close the socket once its client has gone."""
        self._thread.join(PATIENCE)
        self._server.close()
        assert not self._thread.is_alive()


@pytest.fixture
def make_peer(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(answer: Answer, greeting: bytes = GREETING) -> Peer:
        peers.append(Peer(tmp_path / "qmp", answer, greeting))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def test_command(make_peer: Callable[..., Peer], vmferry: Any) -> None:
    """Broken: the command, its arguments or its answer would not come through."""
    peer = make_peer(lambda _: {"return": {"status": "running"}})
    result = vmferry.call("ctl", peer.path, "query-this", "a.b=1")
    assert (result.exit_code, result.stdout) == (0, "status  running\n")
    assert peer.heard[1]["execute"] == "query-this"
    assert peer.heard[1]["arguments"] == {"a": {"b": 1}}


def test_json(make_peer: Callable[..., Peer], vmferry: Any) -> None:
    """Broken: a program could not read the answer."""
    value = {"text": "\u001b", "list": [{"a": None}]}
    peer = make_peer(lambda _: {"return": value})
    result = vmferry.call("ctl", peer.path, "query-this", "--json")
    assert json.loads(result.stdout) == value


def test_refused(make_peer: Callable[..., Peer], vmferry: Any) -> None:
    """Broken: a script would not learn that its command was refused, nor why."""
    peer = make_peer(lambda _: {"error": {"class": "GenericError", "desc": "not\nnow"}})
    result = vmferry.call("ctl", peer.path, "stop")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "vmferry: GenericError: not now\n"


def test_answer_and_gone(make_peer: Callable[..., Peer], vmferry: Any) -> None:
    """Broken: `quit`, after which a peer hangs up, would look like a failure."""
    peer = make_peer(lambda name: {"return": {}} if name == "quit" else b"")
    result = vmferry.call("ctl", peer.path, "quit")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize("answer", [b"", b"{nonsense\n", b"[]\n"])
def test_peer_that_breaks_off(answer: bytes, make_peer: Callable[..., Peer], vmferry: Any) -> None:
    """Broken: a peer that dies, or is none, would be a traceback or a wait without end."""
    peer = make_peer(lambda _: answer)
    ran = vmferry.run("ctl", peer.path, "stop")
    assert ran.status == 1
    assert ran.error.startswith(f"{peer.path}: the connection broke: ")


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b'{"return": {}}\n'])
def test_no_greeting(greeting: bytes, make_peer: Callable[..., Peer], vmferry: Any) -> None:
    """Broken: the wrong port would be a traceback."""
    peer = make_peer(lambda _: b"", greeting)
    ran = vmferry.run("ctl", peer.path, "stop")
    assert ran.status == 1
    assert ran.error.startswith(f"{peer.path}: ")


def test_silent_peer(
    make_peer: Callable[..., Peer], vmferry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a QEMU that another client holds would keep us waiting without a word."""
    monkeypatch.setattr(ctl, "GREETING", 2.0)
    peer = make_peer(lambda _: b"", b"")
    result = vmferry.call("ctl", peer.path, "stop")
    assert result.exit_code == 1
    assert "no QMP greeting" in result.stderr
    assert "one client at a time" in result.stderr


@pytest.mark.parametrize(
    ("address", "told"), [("/nonexistent/x", "No such file"), ("127.0.0.1:1", "refused")]
)
def test_nobody_there(address: str, told: str, vmferry: Any) -> None:
    """Broken: a mistyped path would be a traceback."""
    ran = vmferry.run("ctl", address, "stop")
    assert ran.status == 1
    assert ran.error.startswith(f"{address}: ")
    assert told in ran.error


def scripted(*answers: dict[str, Any]) -> Answer:
    """Answer `query-migrate` with these answers, one after the other, and the last one again and
    again.
    """
    left = list(answers)
    return lambda _: {"return": left.pop(0) if len(left) > 1 else left[0]}


RAM = {"total": 1 << 20, "transferred": 1 << 19, "remaining": 1 << 19, "mbps": 8.388608}
ACTIVE = {"status": "active", "ram": {**RAM, "dirty-sync-count": 2}}


def test_watch(make_peer: Callable[..., Peer], vmferry: Any) -> None:
    """Broken: nobody could follow a migration, or it would not end with it."""
    completed = {**ACTIVE, "status": "completed", "total-time": 1200, "downtime": 7}
    completed["__vmferry_tracker"] = "digests"
    before: list[dict[str, Any]] = [{}, {"status": "none"}, {"status": "setup"}]
    peer = make_peer(scripted(*before, ACTIVE, completed))
    result = vmferry.call("ctl", peer.path, "watch", "--json")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert lines[0] == "waiting for a migration to begin"
    assert lines[1] == "migrating: setup"
    # The rate depends on when the peer was asked.
    shown = (
        r"migrating: completed, 512\.0 KiB( at .*/s)?, round 2, 512\.0 KiB left, tracker digests"
    )
    assert re.fullmatch(shown, lines[-2])
    assert lines[-1] == "the migration completed, total time 1200 ms, downtime 7 ms"
    assert json.loads(result.stdout) == completed


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ({"status": "failed", "error-desc": "no room"}, "failed: no room"),
        ({"status": "failed"}, "failed"),
        ({"status": "cancelled"}, "was cancelled"),
    ],
)
def test_watch_one_that_fails(
    last: dict[str, Any], told: str, make_peer: Callable[..., Peer], vmferry: Any
) -> None:
    """Broken: a script that waits for a migration would take its failure for success."""
    peer = make_peer(scripted(ACTIVE, last))
    result = vmferry.call("ctl", peer.path, "watch")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"vmferry: the migration {told}"


def test_watched_peer_dies(make_peer: Callable[..., Peer], vmferry: Any) -> None:
    """Broken: whoever watches would wait for ever, or take it for the end."""
    answers = iter([ACTIVE, ACTIVE])
    peer = make_peer(lambda _: {"return": answer} if (answer := next(answers, None)) else b"")
    ran = vmferry.run("ctl", peer.path, "watch")
    assert ran.status == 1
    assert "the connection broke" in ran.err.splitlines()[-1]


def test_watch_takes_no_arguments(vmferry: Any) -> None:
    """Broken: what it does not heed would look heeded."""
    assert vmferry.call("ctl", "/nonexistent", "watch", "a=1").exit_code == 2


@given(st.none() | st.text(max_size=9) | st.lists(st.integers()) | st.just({"total": {}}))
def test_watched_takes_any_answer(value: object) -> None:
    """Broken: a peer with other figures would be a traceback."""
    odd = {"status": value, "ram": {"total": value, "mbps": value, "dirty-sync-count": value}}
    odd["__vmferry_tracker"] = [value]
    figures = Watched.of(odd)
    assert (figures.total, figures.dirty_sync_count) == (0, 0)
    assert isinstance(outcome(odd), str)
