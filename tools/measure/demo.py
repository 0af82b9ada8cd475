"""Implements `vmferry demo`: migrates a busy synthetic guest between process groups over TCP."""

from __future__ import annotations

import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from ...guest.errors import GuestError, MigrationError
from ...guest.open import open_guest
from ...guest.sizes import format_size
from ...guest.synthetic import SyntheticGuest
from ...protocol.errors import VmferryError
from ...receiver.coordinator import ReceiveParameters, Receiver
from ...sender.coordinator import Sender
from ...sender.figures import Figures
from ...sender.parameters import SendParameters
from ...transport.process import Child, send_message, start_child, stop_children
from ..console.progress import Progress
from ..console.summary import summary
from ..console.text import echo
from .children import ChildError, next_message

HOT = 32 << 20
"""The number of bytes that the guest writes over and over."""
RUN_ON = 1.0
"""The time in seconds for which the guest is observed at the destination."""


class DemoError(VmferryError):
    """Raised if the destination failed; the message is one line."""


def run(size: int, dirty_rate: int, max_bandwidth: int) -> bool:
    """Run the demonstration; return whether the memories were equal and the guest stayed intact."""
    destination = start_child("vmferry-demo", _destination, (), parent=True)
    source = open_guest(f"synthetic:{size},dirty-rate={dirty_rate},hot={HOT}")
    assert isinstance(source, SyntheticGuest)
    try:
        address = _next(destination)
        guest, rate, hot = (format_size(number) for number in (size, dirty_rate, HOT))
        echo(f"a guest of {guest} writes {rate}/s to the same {hot}; it goes to {address}")
        sender = Sender(source, address, SendParameters(max_bandwidth=max_bandwidth))
        with Progress("migrating") as progress:
            figures = sender.run(progress.update)
        digests, bad, before, after, bad_later = _next(destination)
        equal = bool((source.page_digests() == digests).all())
    finally:
        source.close()
        stop_children([destination])
    _summary(figures, equal, len(bad), after - before, len(bad_later))
    if after == before and dirty_rate:
        raise DemoError("the guest did not run on at the destination")
    return equal and not bad and not bad_later


def _next(destination: Child) -> Any:
    try:
        message = next_message(destination)
    except ChildError as error:
        raise DemoError(str(error)) from None
    if isinstance(message, DemoError):
        raise message
    return message


def _destination(connection: Connection) -> None:
    guest = open_guest("synthetic:")
    assert isinstance(guest, SyntheticGuest)
    try:
        receiver = Receiver(guest, "tcp:127.0.0.1:0", ReceiveParameters(paused=True))
        receiver.run(on_listening=partial(send_message, connection))
        digests, bad, before = guest.page_digests(), guest.verify(), guest.counter()
        guest.resume()
        time.sleep(RUN_ON)
        guest.pause()
        send_message(connection, (digests, bad, before, guest.counter(), guest.verify()))
    except (GuestError, MigrationError) as error:
        send_message(connection, DemoError(str(error)))
    finally:
        guest.close()


def _summary(figures: Figures, equal: bool, bad: int, written: int, bad_later: int) -> None:
    for line in summary(figures):
        echo(line)
    echo(f"memories     {'equal' if equal else 'DIFFERENT'} at switchover, {bad} bad pages")
    echo(f"ran on       wrote {written} pages at the destination, {bad_later} bad pages")
