"""The facts of a stream, and the state of the command line that is built from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...protocol import events
from ..sources.domain import Domain
from .families import Family, family_of
from .main_ram import Guest
from .qemu_command import Command


@dataclass(frozen=True)
class Told:
    """The facts that a stream has on its machine: configuration, RAM blocks, device sections,
    description, and the libvirt domain.
    """

    configuration: events.Configuration | None
    blocks: Sequence[events.RamBlock]
    sections: Sequence[events.DeviceSection]
    description: events.Description | None
    domain: Domain | None = None


@dataclass
class Draft:
    """A command line that is not complete.

    `machine`: name of the machine, or "" if not known; `guest`: its processor and memory layout, as
    far as known. `used`: the names of RAM blocks that an option creates; `added`: the names of
    added devices, by their path.
    """

    told: Told
    machine: str
    guest: Guest
    command: Command = field(default_factory=Command)
    used: set[str] = field(default_factory=set)
    added: dict[str, str] = field(default_factory=dict)
    _number: int = 0

    @property
    def family(self) -> Family | None:
        """Return the machine's family, or None if it is not known; the program is chosen before."""
        return family_of(self.machine, self.command.target)

    @property
    def family_name(self) -> str:
        """Return the name of the machine's family, or "" if it is not known."""
        return "" if self.family is None else self.family.name

    def add(self, *option: str) -> None:
        """Add an option, with its value if it has one."""
        self.command.options.append(option)

    def say(self, line: str) -> None:
        """Add a comment on a fact that the stream does not have."""
        self.command.comments.append(line)

    def next_number(self) -> int:
        """Return the next number for a name of something that the stream does not name."""
        self._number += 1
        return self._number


def begin(told: Told) -> Draft:
    """Return a command line without options, for the machine that the facts name."""
    domain = told.domain
    machine = told.configuration.machine if told.configuration else ""
    machine = machine or (domain.machine if domain else "")
    return Draft(told, machine, Guest(machine, domain.target if domain else None))
