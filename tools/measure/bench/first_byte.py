"""Measures the time from the start of a command to its first byte on the wire."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from statistics import median

from .arrival import wait_first_byte
from .cases import BenchError, Case, Variant
from .qemu import first_byte_of_qemu

TIMEOUT = 60.0
"""The longest time in seconds that a command may take."""
_SIZE = 32 << 20
"""RAM in bytes: little, so that its making does not count."""
_VMFERRY = (sys.executable, "-m", "vmferry")
_SYNTHETIC = f"synthetic:{_SIZE},orphan=0"


def measure_first_byte(runs: int, qemu: str | None) -> dict[str, float]:
    """Return the medians in seconds: of `vmferry send` with a guest that lies in a folder and with
    one that has to be started, and of QEMU's command `migrate`, for which all runs already.
    """
    with tempfile.TemporaryDirectory(prefix="vmferry-bench-") as folder:
        _run("send", f"file:{folder}/stream", "--guest", _SYNTHETIC)
        _run("receive", f"file:{folder}/stream", "--guest", f"dir:{folder}/guest")
        times: dict[str, list[float]] = {"vmferry send dir:": [], "vmferry send synthetic:": []}
        for _ in range(runs):
            times["vmferry send dir:"].append(_first_byte(f"dir:{folder}/guest"))
            times["vmferry send synthetic:"].append(_first_byte(_SYNTHETIC))
    if qemu is not None:
        case = Case(_SIZE * 2, "zero", 0, "cold", Variant(), _SIZE // 8)
        times["qemu migrate"] = [first_byte_of_qemu(qemu, case) for _ in range(runs)]
    return {name: median(of_all) for name, of_all in times.items()}


def _run(*arguments: str) -> None:
    done = subprocess.run([*_VMFERRY, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"vmferry {arguments[0]}: {done.stderr.strip()}")


def _first_byte(guest: str) -> float:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"tcp:127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with subprocess.Popen(
            [*_VMFERRY, "send", uri, "--guest", guest],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                return wait_first_byte(server, TIMEOUT) - started
            finally:
                process.terminate()
