"""Choose what migrates a guest: vmferry's own sender and receiver, or a QEMU that it drives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ..guest.base import Guest
from ..protocol.errors import ParameterError
from ..receiver.coordinator import ReceiveParameters, Receiver
from ..sender.coordinator import Sender
from ..sender.parameters import SendParameters

if TYPE_CHECKING:
    from ..relay.parameters import RelayParameters

    # The library for QMP is slow to import, and other guests do without.
    from .qemu.incoming import QemuReceiver
    from .qemu.outgoing import QemuSender

AnySender: TypeAlias = "Sender | QemuSender"
"""An outgoing migration; both kinds are used in the same way."""
AnyReceiver: TypeAlias = "Receiver | QemuReceiver"
"""An incoming migration; both kinds are used in the same way."""


def new_sender(
    guest: Guest,
    uri: str,
    parameters: SendParameters,
    link: RelayParameters | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> AnySender:
    """Return an outgoing migration of the guest.

    With `link`, a far relay is at `uri`, and `note` takes a line when something happens to it.
    Raises what the sender of that kind raises.
    """
    if not guest.moves_itself:
        if link is not None:
            raise ParameterError("relay: a QEMU's guest alone (qemu:) goes to a relay directly")
        return Sender(guest, uri, parameters)
    from ..guest.qemu.guest import QemuGuest  # noqa: PLC0415 - slow, and only needed here
    from .qemu.outgoing import QemuSender  # noqa: PLC0415

    assert isinstance(guest, QemuGuest)
    return QemuSender(guest, uri, parameters, link, note)


def new_receiver(guest: Guest, uri: str, parameters: ReceiveParameters) -> Receiver | QemuReceiver:
    """Return an incoming migration of the guest. Raises what the receiver of that kind raises."""
    if not guest.moves_itself:
        return Receiver(guest, uri, parameters)
    from ..guest.qemu.guest import QemuGuest  # noqa: PLC0415 - slow, and only needed here
    from .qemu.incoming import QemuReceiver  # noqa: PLC0415

    assert isinstance(guest, QemuGuest)
    return QemuReceiver(guest, uri, parameters)
