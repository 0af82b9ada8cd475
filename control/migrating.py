"""Choose what migrates a guest: vmferry's own sender and receiver, or a QEMU that it drives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..guest.base import Guest
from ..receiver.coordinator import ReceiveParameters, Receiver
from ..sender.coordinator import Sender
from ..sender.parameters import SendParameters

if TYPE_CHECKING:
    # The library for QMP is slow to import, and other guests do without.
    from .qemu.incoming import QemuReceiver
    from .qemu.outgoing import QemuSender


def new_sender(guest: Guest, uri: str, parameters: SendParameters) -> Sender | QemuSender:
    """Return an outgoing migration of the guest. Raises what the sender of that kind raises."""
    if not guest.moves_itself:
        return Sender(guest, uri, parameters)
    from ..guest.qemu.guest import QemuGuest  # noqa: PLC0415 - slow, and only needed here
    from .qemu.outgoing import QemuSender  # noqa: PLC0415

    assert isinstance(guest, QemuGuest)
    return QemuSender(guest, uri, parameters)


def new_receiver(guest: Guest, uri: str, parameters: ReceiveParameters) -> Receiver | QemuReceiver:
    """Return an incoming migration of the guest. Raises what the receiver of that kind raises."""
    if not guest.moves_itself:
        return Receiver(guest, uri, parameters)
    from ..guest.qemu.guest import QemuGuest  # noqa: PLC0415 - slow, and only needed here
    from .qemu.incoming import QemuReceiver  # noqa: PLC0415

    assert isinstance(guest, QemuGuest)
    return QemuReceiver(guest, uri, parameters)
