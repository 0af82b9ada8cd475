"""What a process leaves of the fault that killed it, for its parent to read.

The kernel tells only the parent that a process was forked by how it died, and that is the fork
server, which may have died as well. A fault of the process itself is noted by the process itself,
in memory that it shares with whoever started it. SIGKILL leaves no note.
"""

from __future__ import annotations

import faulthandler
import os

_ROOM = 1 << 10
_FAULTS = {
    b"Bus error": "SIGBUS: a file that it had mapped could not grow (disk full?), or was cut",
    b"Segmentation fault": "SIGSEGV",
    b"Aborted": "SIGABRT",
    b"Floating": "SIGFPE",
    b"Illegal instruction": "SIGILL",
}


def begin_last_words() -> int:
    """Have this process note what kills it; return the descriptor of the note, which stays open."""
    fd = os.memfd_create("vmferry-last-words", os.MFD_CLOEXEC)
    faulthandler.enable(fd, all_threads=False)
    return fd


def read_last_words(fd: int) -> str:
    """Return by what the process died that wrote the note, in a line; empty if it is not known."""
    note = os.pread(fd, _ROOM, 0).partition(b"\n")[0]
    return next((fault for name, fault in _FAULTS.items() if name in note), "")
