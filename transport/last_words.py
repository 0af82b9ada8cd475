"""Record the fault that kills a process, for its parent to read.

The kernel reports how a process died only to the parent that forked it, and that is the fork
server, which may have died as well. So a process records its own fault, in memory that it shares
with whoever started it. SIGKILL leaves no record.
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
    """Start to record the fault that kills this process, and return the record's descriptor.

    The descriptor stays open.
    """
    fd = os.memfd_create("vmferry-last-words", os.MFD_CLOEXEC)
    faulthandler.enable(fd, all_threads=False)
    return fd


def read_last_words(fd: int) -> str:
    """Return the fault that killed the process with this record, in a line; empty if not known."""
    note = os.pread(fd, _ROOM, 0).partition(b"\n")[0]
    return next((fault for name, fault in _FAULTS.items() if name in note), "")
