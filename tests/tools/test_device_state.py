"""Device state of any size: read in bounded memory, and its ends believed as described."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import MigrationError
from vmferry.protocol import events
from vmferry.protocol.wire.kept import whole
from vmferry.receiver.coordinator import ReceiveParameters, Receiver
from vmferry.tools.sources.stream_events import How, read_events

from tests import streams
from tests.protocol.test_ending import forged

SIZE = 300 << 20
MEMORY = 64 << 10
"""KiB that 300 MiB of device state may cost beyond what a small stream does."""
LAST = streams.device(9, "globalstate", b"running")


def _stream(devices: list[events.DeviceSection], *, answer: bool = False) -> bytes:
    """Return a whole small guest with these devices."""
    first = [event for event in streams.opening(answers=answer) if event != streams.EARLY]
    return streams.to_bytes([*first, *streams.zeros(), *streams.closing(devices, early=())])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a stream with a device of SIZE bytes, which has complete forged ends every MiB."""
    gpu, step = streams.device(4, "0000:00:04.0/virtio-gpu", b""), 1 << 20
    payload, path = bytearray(SIZE), tmp_path_factory.mktemp("large") / "stream"
    for at in range(step, SIZE, step):
        value = {"name": gpu.name, "instance_id": 0, "fields": [{"size": at}]}
        text = json.dumps({"devices": [value]}).encode()
        end = b"\x7e\0\0\0\4\0\6" + len(text).to_bytes(4, "big") + text
        payload[at : at + len(end)] = end
    devices = [streams.device(4, gpu.name, bytes(payload)), LAST]
    path.write_bytes(_stream(devices))
    return path


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize(
    "command",
    [
        ("verify", "{}"),
        ("dump", "{}"),
        ("extract", "{}", "-o", "ram", "--devices", "devices"),
        ("convert", "{}", "again", "--to", "plain"),
    ],
)
def test_memory_does_not_grow_with_device_state(
    command: tuple[str, ...], piped: bool, large: Path, vmferry: Any
) -> None:
    """Broken: a guest with a large framebuffer would be refused, or take as much memory."""
    small = vmferry.write("small", streams.WHOLE)

    def peak(path: str | Path) -> int:
        words = [word.format("-" if piped else path) for word in command]
        program = [sys.executable, "-m", "vmferry.tools.cli", *words]
        with open(path, "rb") as file:
            feed = subprocess.PIPE if piped else file
            process = subprocess.Popen(program, stdin=feed, cwd=vmferry.folder)
            if piped:
                assert process.stdin is not None
                while piece := file.read(1 << 20):
                    process.stdin.write(piece)
                process.stdin.close()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        most: int = used.ru_maxrss
        return most

    usual = peak(small)
    for name in ("again", "ram"):
        (vmferry.folder / name).unlink(missing_ok=True)
    for file in (vmferry.folder / "devices").glob("*"):
        file.unlink()
    assert peak(large) < usual + MEMORY
    if command[0] == "convert":
        assert (vmferry.folder / "again").stat().st_size == large.stat().st_size
    if command[0] == "extract":
        sizes = {file.stat().st_size for file in (vmferry.folder / "devices").iterdir()}
        assert {SIZE, len(LAST.payload)} <= sizes


def test_a_limit_of_device_state(large: Path, vmferry: Any) -> None:
    """Broken: who wants a limit could not have one."""
    for limit, status in (("299M", 1), ("301M", 0)):
        for name in (str(large), "-"):
            with large.open("rb") as file:
                feed = b"" if name != "-" else file.read()
            result = vmferry.call("verify", name, "--max-device-state", limit, feed=feed)
            assert result.exit_code == status, result.output
            assert ("(--max-device-state)" in result.stderr) == bool(status)


def test_large_payloads_are_the_bytes_of_the_stream(large: Path) -> None:
    """Broken: what was kept elsewhere would be read from a wrong place."""
    data = large.read_bytes()
    for stream in (large.open("rb"), _pipe(data)):
        with stream:
            found = [e for e in read_events(stream, How()) if isinstance(e, events.DeviceSection)]
            gpu, last = found
            assert whole(gpu.payload) == data[gpu.payload_offset :][:SIZE]
            assert (last.name, last.payload) == (LAST.name, LAST.payload)


def _pipe(data: bytes) -> Any:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    return Pipe(data)


def receive(
    folder: Path, source: Callable[[socket.socket], None], limit: int | None = None
) -> Receiver:
    threads: list[threading.Thread] = []

    def listening(uri: str) -> None:
        _, host, port = uri.split(":")

        def send() -> None:
            with socket.create_connection((host, int(port))) as connection:
                source(connection)

        threads.append(threading.Thread(target=send, daemon=True))
        threads[0].start()

    guest = DirectoryGuest(str(folder))
    parameters = ReceiveParameters(workers=0, max_device_state=limit)
    receiver = Receiver(guest, "tcp:127.0.0.1:0", parameters)
    try:
        receiver.run(on_listening=listening)
    finally:
        threads[0].join(20)
        guest.close()
    return receiver


def _answered(connection: socket.socket) -> bytes:
    try:
        return connection.recv(100)
    except ConnectionResetError:
        return b""


def test_receive_large_device_state(large: Path, tmp_path: Path) -> None:
    """Broken: a guest with a large framebuffer could not be received, or lose part of it."""
    data = large.read_bytes()
    receive(tmp_path / "guest", lambda connection: connection.sendall(data))
    sizes = {file.stat().st_size for file in (tmp_path / "guest" / "devices").iterdir()}
    assert sizes == {SIZE, len(LAST.payload)}
    with pytest.raises(MigrationError, match="max-device-state"):
        receive(tmp_path / "other", _sending(data), limit=1 << 20)


def _sending(data: bytes) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        try:
            connection.sendall(data)
            _answered(connection)
        except OSError:
            return

    return send


def _forged(*, answer: bool) -> tuple[bytes, int]:
    """Return a stream with a complete forged end in a framebuffer, and where that ends."""
    timer, gpu = streams.device(3, "timer", b"1" * 24), streams.device(4, "gpu", b"pixels")
    fake = _without_early(forged([timer], gpu))
    held = streams.device(4, "gpu", b"pixels" + fake + bytes(5000))
    data = _stream([timer, held, LAST], answer=answer)
    return data, data.index(fake) + len(fake)


def _without_early(fake: bytes) -> bytes:
    head, text = fake[:11], json.loads(fake[11:])
    text["devices"] = text["devices"][1:]
    body = json.dumps(text).encode()
    return head[:7] + len(body).to_bytes(4, "big") + body


def test_a_forged_end_is_not_answered(tmp_path: Path) -> None:
    """Broken: `receive` would tell the source that the guest has arrived, with a part of it."""
    data, stop = _forged(answer=True)
    answers: list[bytes] = []

    def source(connection: socket.socket) -> None:
        connection.sendall(data[: stop - 1])
        connection.sendall(data[stop - 1 :])
        answers.append(_answered(connection))

    receive(tmp_path / "guest", source)
    assert len(answers[0]) > 4
    assert len([*(tmp_path / "guest" / "devices").iterdir()]) == 3


@pytest.mark.parametrize("answer", [False, True])
def test_a_source_that_is_cut_off_behind_a_forged_end(answer: bool, tmp_path: Path) -> None:
    """Broken: half a guest would be taken where its source died behind an end that it forged."""
    data, stop = _forged(answer=answer)
    with pytest.raises(MigrationError, match="bytes behind what looked like the end"):
        receive(tmp_path / "guest", lambda c: c.sendall(data[: stop + 100]))
    assert not (tmp_path / "guest" / "guest.json").exists()


def test_what_nothing_confirms_is_not_answered(tmp_path: Path) -> None:
    """Broken: a source would give up a guest whose end was guessed."""
    devices = [streams.device(3, "timer", b"1" * 24)]
    for answer in (True, False):
        data = _stream(devices, answer=answer)
        bare = data[: data.rindex(b"\0\6") + 1]
        answers: list[bytes] = []

        def source(
            connection: socket.socket,
            bare: bytes = bare,
            answer: bool = answer,
            answers: list[bytes] = answers,
        ) -> None:
            connection.sendall(bare)
            if answer:
                answers.append(_answered(connection))

        if answer:
            with pytest.raises(MigrationError, match="no description of its devices"):
                receive(tmp_path / "guest", source)
            assert answers == [b""]
        else:
            receive(tmp_path / "guest", source)
