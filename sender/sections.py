"""Say which parts of a guest a migration sends as sources, in the order of the stream."""

from __future__ import annotations

from ..guest.base import Guest
from ..transport.compression import Compression
from ..transport.crew import Crew
from ..transport.settings import Disks
from .bitmaps import BitmapSource
from .disks.source import DiskSource, disk_bytes
from .parameters import SendParameters
from .processes import Processes
from .ram import RamSource
from .sources import Source, Sources
from .topology import Topology


def total_of(guest: Guest, parameters: SendParameters) -> int:
    """Return the size in bytes of what is sent in rounds."""
    ram = sum(block.length for block in guest.blocks)
    return ram if parameters.disks is Disks.NONE else ram + disk_bytes(guest)


def sources_of(
    guest: Guest,
    parameters: SendParameters,
    *,
    topology: Topology,
    processes: Processes,
    crew: Crew,
    compression: Compression | None,
) -> Sources:
    """Return the sources of a migration of the guest: in the order of a QEMU."""
    ram: list[Source] = [RamSource(guest, topology.path, processes)]
    if parameters.dirty_bitmaps:
        ram.append(BitmapSource())
    if parameters.disks is Disks.NONE:
        return Sources(ram)
    disks = DiskSource(
        guest,
        processes,
        crew,
        compression,
        wanted=parameters.disks,
        zero_blocks=parameters.zero_blocks,
    )
    return Sources([disks, *ram], disks)
