"""Guests of a real QEMU cross to vmferry and on to another real QEMU."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.qemu.machine import VMFERRY, Machine, ram_options, rebuilt_stream, saved_stream, vmferry


@pytest.mark.parametrize("scheme", ["tcp", "tcp6", "unix", "exec"])
def test_guest_crosses_and_runs_on(version: str, scheme: str, tmp_path: Path) -> None:
    """Broken: QEMU would refuse our stream, or we its; or the guest would not run on."""
    uri = {
        "tcp": "tcp:127.0.0.1:0",
        "tcp6": "tcp:[::1]:0",
        "unix": f"unix:{tmp_path}/in.sock",
        "exec": f"exec:while [ ! -s {tmp_path}/done ]; do sleep 0.1; done; cat {tmp_path}/stream",
    }[scheme]
    saved = tmp_path / "saved"
    source = Machine(version, tmp_path / "source")
    try:
        source.wait_for_beats()
        receiving = subprocess.Popen(
            [*VMFERRY, "receive", uri, "--guest", f"dir:{saved}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert receiving.stderr is not None
        address = receiving.stderr.readline().removeprefix("listening on ").strip()
        if scheme == "exec":
            address = f"exec:cat > {tmp_path}/stream && echo 1 > {tmp_path}/done"
        source.migrate(address)
        errors = receiving.communicate(timeout=PATIENCE)[1]
        assert receiving.returncode == 0, errors
    finally:
        source.stop()
    incoming = f"unix:{tmp_path}/out.sock"
    destination = Machine(version, tmp_path / "destination", "-incoming", incoming)
    try:
        sent = vmferry("send", incoming, "--guest", f"dir:{saved}")
        assert sent.returncode == 0, sent.stderr
        destination.wait_for("completed")
        destination.wait_for_beats()
    finally:
        destination.stop()


def test_rebuilds_what_qemu_rebuilds(version: str, tmp_path: Path) -> None:
    """Broken: RAM in a directory guest would differ from what a stock QEMU makes of the stream."""
    saved, stream = tmp_path / "saved", saved_stream(version, tmp_path)
    received = vmferry("receive", f"file:{stream}", "--guest", f"dir:{saved}")
    assert received.returncode == 0, received.stderr
    again = rebuilt_stream(version, tmp_path, stream)
    checked = vmferry("verify", str(again), *ram_options(saved))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_crosses_over_descriptors(version: str, tmp_path: Path) -> None:
    """Broken: who opens the connections (libvirt does) could not hand them to either end."""
    saved = tmp_path / "saved"
    near, far = socket.socketpair()
    source = Machine(version, tmp_path / "source")
    try:
        source.wait_for_beats()
        command = [*VMFERRY, "receive", f"fd:{far.fileno()}", "--guest", f"dir:{saved}"]
        with near, far:
            receiving = subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True, pass_fds=[far.fileno()]
            )
            source.qmp.send_fd_scm(near.fileno())
            source.ask("getfd", fdname="out")
        source.migrate("fd:out")
        errors = receiving.communicate(timeout=PATIENCE)[1]
        assert receiving.returncode == 0, errors
    finally:
        source.stop()
    near, far = socket.socketpair()
    fd = far.fileno()
    with near, far:
        options = ("-incoming", f"fd:{fd}")
        destination = Machine(version, tmp_path / "destination", *options, pass_fds=(fd,))
        try:
            far.close()
            sent = subprocess.run(
                [*VMFERRY, "send", f"fd:{near.fileno()}", "--guest", f"dir:{saved}"],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
                pass_fds=[near.fileno()],
            )
            near.close()
            assert sent.returncode == 0, sent.stderr
            destination.wait_for("completed")
            destination.wait_for_beats()
        finally:
            destination.stop()
