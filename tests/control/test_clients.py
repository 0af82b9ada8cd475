"""Clients that people and programs use with QEMU, with a service in its place."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from qemu.qmp.legacy import QEMUMonitorProtocol
from vmferry.protocol.states import MigrationStatus

from tests.control.serving import Monitor, Serve
from tests.patience import PATIENCE

LIBVIRT = Path(__file__).with_name("libvirt.jsonl")
"""Commands of libvirt 9.0 to the monitor of a QEMU 7.2, from its own log.

At the start of a domain; of `virsh qemu-monitor-command` with query-migrate, query-status,
query-migrate-capabilities, migrate-set-parameters and a command that is none; migrate-setspeed,
suspend, resume and save. Left out is what has nothing to do with migration.
"""


class Libvirt:
    """Writes bytes as libvirt did, one command after another's answer."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")
        self.events: list[str] = []
        assert "QMP" in json.loads(self._lines.readline())

    def give(self, line: bytes, fds: list[int]) -> dict[str, Any]:
        """Return the answer to a command."""
        socket.send_fds(self._socket, [line + b"\r\n"], fds)
        while "event" in (answer := json.loads(self._lines.readline())):
            self._take(answer)
        assert answer["id"] == json.loads(line)["id"]
        return dict(answer)

    def wait_for_end(self) -> None:
        """Wait for the end of the migration by events alone, as libvirt does."""
        while self.events[-1:] != ["completed"]:
            self._take(json.loads(self._lines.readline()))

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append(event.get("data", {}).get("status", event["event"]))
        assert "failed" not in self.events

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()


def test_bytes_of_libvirt(serve: Serve, tmp_path: Path) -> None:
    """Broken: virsh could neither ask nor steer a service as it does a QEMU."""
    service = serve("synthetic:16M,dirty-rate=1M")
    libvirt = Libvirt(service.address)
    saved = os.open(tmp_path / "saved", os.O_WRONLY | os.O_CREAT)
    for line in LIBVIRT.read_bytes().splitlines():
        command = json.loads(line)
        answer = libvirt.give(line, [saved] if command["execute"] == "getfd" else [])
        if command["execute"] == "nonsense":
            assert answer["error"]["class"] == "CommandNotFound"
        else:
            assert "return" in answer, (command, answer)
        if command["execute"] == "migrate":
            libvirt.wait_for_end()
    os.close(saved)
    libvirt.close()
    assert libvirt.events == [
        *("STOP", "RESUME", "STOP"),
        *("setup", "MIGRATION_PASS", "active", MigrationStatus.COMPLETED),
    ]
    command = [sys.executable, "-m", "vmferry.tools.cli", "verify", str(tmp_path / "saved")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_qmp_shell(serve: Serve) -> None:
    """Broken: people could not type commands as they do to a QEMU."""
    service = serve("synthetic:8M,dirty-rate=1M")
    typed = [
        "migrate-set-parameters max-bandwidth=1000000 downtime-limit=500",
        'migrate-set-capabilities capabilities=[{"capability":"events","state":true}]',
        "migrate uri=nonsense",
        "migrate uri=unix:/nonexistent/socket",
        "query-migrate",
        "nonsense",
        "query-migrate-parameters",
    ]
    shell = subprocess.run(
        [sys.executable, "-m", "qemu.qmp.qmp_shell", service.address],
        input="\n".join(typed) + "\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=os.environ | {"HOME": str(Path(service.address).parent)},
    )
    assert "Connected to QEMU 7.2" in shell.stdout, shell
    answers = [
        json.loads(line.split("(QEMU) ")[-1])
        for line in shell.stdout.splitlines()
        if line.split("(QEMU) ")[-1].startswith("{")
    ]
    kinds = [next(iter(answer)) for answer in answers if "event" not in answer]
    assert kinds == [*("return", "return", "error", "return"), *("return", "error", "return")]
    assert answers[-1]["return"]["downtime-limit"] == 500


def test_several_clients_over_tcp(serve: Serve) -> None:
    """Broken: only one could watch, or a client that goes away would disturb the others."""
    service = serve("synthetic:8M", "--qmp", "tcp:127.0.0.1:0")
    assert service.process.stderr is not None
    line = service.process.stderr.readline()
    port = int(line.rpartition(":")[2])
    clients = []
    for _ in range(5):
        clients.append(QEMUMonitorProtocol(("127.0.0.1", port)))
        clients[-1].connect()
    gone = clients.pop(2)
    gone.close()
    with socket.create_connection(("127.0.0.1", port)) as rude:
        rude.send(b'{"execute": "qmp_capab')
    clients[0].cmd("stop")
    for client in clients:
        assert Monitor(client).events() == [("STOP", None)]
        client.close()
    assert service.run_state() == "paused"
