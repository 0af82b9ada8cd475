"""Plan the channels of one migration: from its parameters, and from what the machine asks for."""

from __future__ import annotations

from dataclasses import dataclass

from ...guest.parts import Machine
from ...protocol.wire.multifd import Compression
from ...protocol.wire.multifd_machines import syncs_at_flush, zero_pages_in_packets
from ...transport.settings import MultifdCompression, ZeroPageDetection
from ..parameters import SendParameters

NO_UUID = bytes(16)
"""UUID in the greeting of a channel whose machine has none."""


@dataclass(frozen=True)
class ChannelPlan:
    """The parameters that all channels of a migration have in common.

    `flush`: MULTIFD_FLUSH records are the sync points, otherwise the ends of pieces of `ram` are.
    """

    channels: int
    uuid: bytes
    compression: Compression
    level: int
    zero_pages: ZeroPageDetection
    flush: bool

    @property
    def last_syncs(self) -> int:
        """Return the number of sync points after the last round.

        The end of the `ram` section is a piece without a MULTIFD_FLUSH record.
        """
        return 0 if self.flush else 1


def plan_channels(channels: int, parameters: SendParameters, machine: Machine) -> ChannelPlan:
    """Return the plan for this number of channels of a migration of this machine."""
    levels = {
        MultifdCompression.NONE: 0,
        MultifdCompression.ZLIB: parameters.multifd_zlib_level,
        MultifdCompression.ZSTD: parameters.multifd_zstd_level,
    }
    return ChannelPlan(
        channels=channels,
        uuid=machine.uuid or NO_UUID,
        compression=Compression[parameters.multifd_compression.name],
        level=levels[parameters.multifd_compression],
        zero_pages=_zero_pages(parameters.zero_page_detection, machine),
        flush=syncs_at_flush(machine.name),
    )


def _zero_pages(wanted: ZeroPageDetection, machine: Machine) -> ZeroPageDetection:
    if wanted is not ZeroPageDetection.AUTO:
        return wanted
    in_packets = zero_pages_in_packets(machine.name)
    return ZeroPageDetection.MULTIFD if in_packets else ZeroPageDetection.LEGACY
