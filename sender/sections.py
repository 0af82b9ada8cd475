"""Say which parts of a guest a migration sends as sources, in the order of the stream."""

from __future__ import annotations

from ..guest.base import Guest
from .processes import Processes
from .ram import RamSource
from .sources import Sources
from .topology import Topology


def total_of(guest: Guest) -> int:
    """Return the size in bytes of what is sent in rounds."""
    return sum(block.length for block in guest.blocks)


def sources_of(guest: Guest, topology: Topology, processes: Processes) -> Sources:
    """Return the sources of a migration of the guest."""
    return Sources([RamSource(guest, topology.path, processes)])
