"""Open the guest that a user names: `dir:PATH`, `synthetic:SIZE[,option=value...]`, `qemu:SOCK`."""

from __future__ import annotations

from collections.abc import Callable

from .base import Guest
from .directory import DirectoryGuest
from .errors import GuestError
from .synthetic import SyntheticGuest

SCAN = ",scan"
"""End of the name of a QEMU's guest whose shared memory is moved by the migration itself."""

_KINDS: dict[str, Callable[[str, bool], Guest]] = {
    "dir": lambda path, _: DirectoryGuest(path),
    "synthetic": SyntheticGuest.parse,
    "qemu": lambda path, _: _open_qemu(path),
}


def _open_qemu(path: str) -> Guest:
    # The library for QMP is slow to import, and other guests do without.
    from .qemu.guest import QemuGuest  # noqa: PLC0415
    from .qemu.scanned import ScannedGuest  # noqa: PLC0415

    socket = path.removesuffix(SCAN)
    if not socket:
        raise GuestError(f"qemu: needs the socket of a QMP monitor: qemu:PATH or qemu:PATH{SCAN}")
    return QemuGuest(path) if socket == path else ScannedGuest(socket)


def open_guest(text: str, *, incoming: bool = False) -> Guest:
    """Open the guest that `text` names. Raises GuestError that says what is wrong.

    An `incoming` guest is to arrive: it does not run, and a size is that of the guest that arrives.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in _KINDS:
        known = " ".join(f"{name}:" for name in _KINDS)
        raise GuestError(f"unknown guest {text!r}: it begins with none of {known}")
    return _KINDS[kind](rest, incoming)
