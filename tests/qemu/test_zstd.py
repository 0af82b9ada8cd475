"""Streams in zstd frames between vmferry and a real QEMU, which takes and gives them by `zstd`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.qemu.machine import (
    VMFERRY,
    Machine,
    check_arrived,
    missing,
    ram_options,
    rebuilt_stream,
    saved_stream,
    vmferry,
)


@pytest.fixture(autouse=True)
def zstd_command() -> None:
    if shutil.which("zstd") is None:
        missing("the zstd command")


@pytest.mark.parametrize("method", ["zstd:3", "adaptive"])
@pytest.mark.parametrize("workers", [0, 2])
def test_qemu_takes_our_frames(version: str, method: str, workers: int, tmp_path: Path) -> None:
    """Broken: `zstd -dc` would not give a stream that QEMU accepts, or one of another guest."""
    saved, stream = tmp_path / "saved", saved_stream(version, tmp_path)
    received = vmferry("receive", f"file:{stream}", "--guest", f"dir:{saved}")
    assert received.returncode == 0, received.stderr
    pipe = tmp_path / "pipe"
    subprocess.run(["mkfifo", str(pipe)], check=True)
    incoming = f"exec:zstd -dc < {pipe}"
    destination = Machine(version, tmp_path / "destination", "-S", "-incoming", "defer")
    try:
        # QEMU waits in `migrate-incoming` for nothing: the shell opens the pipe.
        destination.ask("migrate-incoming", uri=incoming)
        options = ("--compress", method, "--workers", str(workers))
        sent = vmferry("send", f"exec:cat > {pipe}", "--guest", f"dir:{saved}", *options)
        assert sent.returncode == 0, sent.stderr
        check_arrived(destination, saved, tmp_path)
    finally:
        destination.stop()


def test_takes_frames_of_a_qemu(version: str, tmp_path: Path) -> None:
    """Broken: a QEMU that compresses on its way (or a save file) could not be received."""
    saved, stream = tmp_path / "saved", tmp_path / "stream"
    source = Machine(version, tmp_path / "source")
    receiving = subprocess.Popen(
        [
            *VMFERRY,
            "receive",
            f"exec:while [ ! -s {stream}.zst ]; do sleep 0.1; done; cat {stream}.zst",
            "--guest",
            f"dir:{saved}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        source.wait_for_beats()
        source.migrate(
            f"exec:tee {stream} | zstd -3 -c > {stream}.part && mv {stream}.part {stream}.zst"
        )
    finally:
        source.stop()
    errors = receiving.communicate(timeout=PATIENCE)[1]
    assert receiving.returncode == 0, errors
    checked = vmferry("verify", str(rebuilt_stream(version, tmp_path, stream)), *ram_options(saved))
    assert checked.returncode == 0, checked.stdout + checked.stderr
