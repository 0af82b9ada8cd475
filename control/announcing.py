"""Decide when a service announces its guest: once the arrived guest runs, and on demand."""

from __future__ import annotations

from .announce import AnnounceParameters, Announcer, Interface
from .errors import QmpError
from .parameters import Parameters


class Announcing:
    """The announcements on the service's interfaces.

    As in QEMU, a stopped guest is not announced.
    """

    def __init__(self, interfaces: tuple[Interface, ...], parameters: Parameters) -> None:
        self._interfaces = interfaces
        self._parameters = parameters
        self._due = False
        self._begun: list[Announcer] = []

    def arrived(self) -> None:
        """Record that the guest has arrived, so an announcement is due."""
        self._due = True

    def runs(self) -> None:
        """Announce the guest if that is due, because it may run from now on."""
        if self._due:
            self._due = False
            names = ("initial", "max", "rounds", "step")
            values = {name: self._parameters[f"announce-{name}"] for name in names}
            self.announce(self._interfaces, AnnounceParameters(**values))

    def announce(self, interfaces: tuple[Interface, ...], parameters: AnnounceParameters) -> None:
        """Start an announcement; frames that cannot be sent are skipped. Raises AnnounceError."""
        self._begun.append(Announcer(interfaces, parameters))
        self._begun[-1].start()

    def chosen(self, names: list[str] | None) -> tuple[Interface, ...]:
        """Return the interfaces with these names, or all. Raises QmpError for an unknown name."""
        known = {interface.name for interface in self._interfaces}
        for name in names or ():
            if name not in known:
                raise QmpError(f"Interface '{name}' is not one that the service was given")
        return tuple(each for each in self._interfaces if not names or each.name in names)

    def finish(self) -> None:
        """End all announcements."""
        for announcer in self._begun:
            announcer.stop()
