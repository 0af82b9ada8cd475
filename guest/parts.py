"""Define the parts of a guest: its machine, its RAM blocks, and the state of its devices."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.errors import ParameterError
from ..protocol.wire.kept import Payload
from ..protocol.wire.marks import DEFAULT_PAGE_SIZE, PAGE_SIZES


@dataclass(frozen=True)
class RamBlock:
    """A block of guest RAM: `length` bytes from `file_offset` on in the mappable file `fd`.

    Raises ParameterError if these are not whole pages.
    """

    name: str
    length: int
    page_size: int
    fd: int
    file_offset: int = 0

    def __post_init__(self) -> None:
        """Check the values, because a wrong one would fail at the other end of a migration."""
        if self.page_size not in PAGE_SIZES:
            sizes = f"a power of 2 from {PAGE_SIZES[0]} to {PAGE_SIZES[-1]}"
            raise ParameterError(f"page_size: {self.page_size} is not {sizes}")
        if self.length < 0 or self.length % self.page_size:
            raise ParameterError(f"length: {self.length} is not whole pages of {self.page_size}")


@dataclass(frozen=True)
class BlockLayout:
    """The layout of a RAM block that an incoming guest must have; sizes in bytes."""

    name: str
    length: int
    page_size: int


@dataclass(frozen=True)
class DeviceSection:
    """The state of one device; its payload is opaque."""

    section_id: int
    name: str
    instance_id: int
    version: int
    payload: Payload


@dataclass(frozen=True)
class Machine:
    """The description of a machine; `page_bits_sent` says that its stream carries the page size."""

    name: str
    page_size: int = DEFAULT_PAGE_SIZE
    capabilities: tuple[str, ...] | None = None
    uuid: bytes | None = None
    page_bits_sent: bool = False


@dataclass(frozen=True)
class DeviceState:
    """The state of all devices in the order of the stream.

    The sections in `early` are sent before RAM, the others after it. `description` is the vmstate
    description as JSON text. `bitmaps` has the dirty bitmaps of disks that are elsewhere: chunks of
    the section `dirty-bitmap`, each with its names.
    """

    early: tuple[DeviceSection, ...]
    sections: tuple[DeviceSection, ...]
    description: bytes | None
    ram_section_id: int
    bitmaps: bytes = b""
