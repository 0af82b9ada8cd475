"""Lets a twin load a stream, and reads why it refuses."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import BinaryIO

from ....guest.qemu.monitor import GoneError
from .launch import Program, Twin, started

_IN = "vmferry-in"
_PIECE = 1 << 20
_PAUSE = 0.02
"""Seconds between two questions whether the stream was loaded."""
_DEVICE = re.compile(r"^error while loading state.* of device '(.*?)'")
"""The line that names the device whose state was refused."""
_ONLY_THAT = ("load of migration failed", "error while loading state")
"""The beginnings of lines that say that a stream was refused, but not why."""


@dataclass(frozen=True)
class Refusal:
    """Why a twin refuses a stream, in its own words, and the device concerned, if it names one."""

    device: str | None
    reason: str


def trial(program: Program, stream: BinaryIO, capabilities: Collection[str]) -> Refusal | None:
    """Return why a twin of a QEMU refuses a stream, or None if it loads it.

    Raises TwinError, QemuError.
    """
    ours, theirs = socket.socketpair()
    with started(program, "-incoming", "defer") as twin, closing(ours), closing(theirs):
        wanted = [{"capability": name, "state": True} for name in capabilities]
        twin.monitor.ask("migrate-set-capabilities", capabilities=wanted)
        twin.monitor.give(_IN, theirs.fileno())
        theirs.close()
        before = len(twin.said())
        feeder = threading.Thread(target=_feed, args=(stream, ours), daemon=True)
        try:
            twin.monitor.ask("migrate-incoming", uri=f"fd:{_IN}")
            feeder.start()
            while (status := twin.monitor.ask("query-migrate").get("status")) != "completed":
                if status == "failed":
                    return _refusal(twin, before)
                time.sleep(_PAUSE)
        except GoneError:
            twin.process.wait()
            return _refusal(twin, before)
        finally:
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            if feeder.ident is not None:
                feeder.join()
    return None


def _feed(stream: BinaryIO, there: socket.socket) -> None:
    # A twin that refuses a stream does not read the rest of it.
    with suppress(OSError), there.makefile("wb", buffering=0) as sink:
        shutil.copyfileobj(stream, sink, _PIECE)
        there.shutdown(socket.SHUT_WR)


def _refusal(twin: Twin, before: int) -> Refusal:
    lines = twin.said()[before:]
    told = [line for line in lines if not line.startswith(_ONLY_THAT)]
    devices = filter(None, map(_DEVICE.search, lines))
    device = next((match[1] for match in devices), None)
    return Refusal(device, (told or lines or ["it does not say why"])[0])
