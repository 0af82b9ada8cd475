"""Make the memory of a synthetic guest, and start the process that the guest is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from .mapping import map_block, populate
from .parts import RamBlock
from .synthetic_memory import PAGE_SIZE, RAM_NAME, ROM_NAME, ROM_SIZE

_PROGRAM = f"{__package__}.synthetic_process"


def make_memory(size: int, *, existing: bool) -> tuple[RamBlock, ...]:
    """Return RAM of `size` bytes and ROM, all zero; `existing`: every page exists already.

    Raises OSError, and leaves nothing behind then.
    """
    made: list[RamBlock] = []
    try:
        for name, length in ((RAM_NAME, size), (ROM_NAME, ROM_SIZE)):
            made.append(RamBlock(name, length, PAGE_SIZE, os.memfd_create(name)))
            os.ftruncate(made[-1].fd, length)
            if existing:
                populate(map_block(made[-1]), write=True)
    except OSError:
        for block in made:
            os.close(block.fd)
        raise
    return tuple(made)


def launch(fds: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start the guest's process, which inherits its connection, RAM and ROM. Raises OSError.

    This is not left to multiprocessing, which waits for its children at exit: a guest may outlive
    the process that has started it.
    """
    # The process will ignore SIGINT; until then the signal stays blocked.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, *map(str, fds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # A signal to the controller's terminal or group must not end the guest.
            start_new_session=True,
            pass_fds=fds,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
