"""What the reader finds in a stream, and what the writer puts into one.

Those of iterative sections other than `ram` are declared with their section.
Every event has `offset`: the position in the stream of its first byte (the writer ignores it).
Writing the events of a stream in order gives the bytes of that stream again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from .sections.block import DiskEvent
from .sections.dirty_bitmap import BitmapChunk
from .sections.htab import HtabEvent
from .sections.storage_attributes import StorageAttributes
from .wire.kept import Payload
from .wire.mapped_ram import MappedRam
from .wire.marks import SectionType
from .wire.ram import COMPRESSED_HEAD_SIZE, RECORD_HEADER_SIZE, XBZRLE_HEAD_SIZE


@dataclass(frozen=True)
class Header:
    """The first bytes of a stream."""

    offset: int
    version: int = 3


@dataclass(frozen=True)
class Configuration:
    """The source's machine. None: the stream does not carry that subsection.

    `page_size` in bytes; `uuid`: 16 bytes.
    """

    offset: int
    machine: str
    page_size: int | None = None
    capabilities: tuple[str, ...] | None = None
    uuid: bytes | None = None


@dataclass(frozen=True)
class IterativeSection:
    """The beginning of a piece of an iterative section.

    `kind`: START, PART or END. Only START carries name, instance id and version on the wire; the
    reader repeats them in the others.
    """

    offset: int
    kind: SectionType
    section_id: int
    name: str
    instance_id: int = 0
    version: int = 1


@dataclass(frozen=True)
class RamSection(IterativeSection):
    """The beginning of a piece of the `ram` section."""

    name: str = "ram"
    version: int = 4


@dataclass(frozen=True)
class OpaquePiece:
    """The payload of a piece of an iterative section that nobody knows, carried verbatim."""

    offset: int
    payload: Payload = field(repr=False)


@dataclass(frozen=True)
class RamBlock:
    """A RAM block as announced: `length` in bytes; the rest only where the wire carries it.

    `page_size`: of the memory behind it, in bytes, with postcopy. `address`: guest-physical, with
    x-ignore-shared. `mapped`: its place in the file, with mapped-ram.
    """

    name: str
    length: int
    page_size: int | None = None
    address: int | None = None
    mapped: MappedRam | None = None

    @property
    def may_be_absent(self) -> bool:
        """Whether its pages may have been left out as shared (x-ignore-shared): a mapped-ram file
        says so, in other streams none of them comes then."""
        if self.mapped is not None:
            return not self.mapped.present
        return self.address is not None


@dataclass(frozen=True)
class RamBlocks:
    """The MEM_SIZE record: all RAM blocks, and the sum of their lengths.

    With mapped-ram the entries stand between the pages: see `mapped_ram` for how they are written.
    `page_size`: bytes of the pages to come, as the reader takes them; not in this record.
    """

    offset: int
    total: int
    blocks: tuple[RamBlock, ...]
    page_size: int = 4096


@dataclass(frozen=True, eq=False)
class PageRun:
    """Consecutive page records of one RAM block.

    `offsets` (n,): where in the block each page belongs, in bytes. `data` (n, page_size): a view on
    the bytes given to the reader, valid until its next call; None for ZERO records, whose pages
    all hold the byte `fill`. `continued`: the first record names no block, as those behind it.
    `position`: where in the parsed view the first page (or fill byte) stands; the next ones follow
    8 + page_size (or 9) bytes apart.
    """

    offset: int
    block: RamBlock
    block_index: int
    offsets: npt.NDArray[np.uint64]
    data: npt.NDArray[np.uint8] | None
    fill: int = 0
    continued: bool = False
    position: int = 0

    def record_offset(self, index: int) -> int:
        """The position in the stream of a record of the run."""
        name = 0 if self.continued else 1 + len(self.block.name.encode())
        body = 1 if self.data is None else self.data.shape[1]
        # The name stands in the first record only.
        return self.offset + (name + index * (RECORD_HEADER_SIZE + body) if index else 0)


@dataclass(frozen=True, eq=False)
class MappedRun(PageRun):
    """Pages near each other of a mapped-ram file (see `mapped_pages`): no records of the stream."""

    def record_offset(self, index: int) -> int:
        """The position in the stream of a page."""
        return self.offset + int(self.offsets[index] - self.offsets[0])


@dataclass(frozen=True, eq=False)
class MultifdRun(PageRun):
    """Pages of a packet of a multifd channel: no records of the stream.

    `channel`: its number. `offset`: in the channel, of the first page (or, of zero pages, of its
    entry among the packet's offsets); the next ones follow `stride` bytes apart, 0: they are
    compressed together.
    """

    channel: int = 0
    stride: int = 0

    def record_offset(self, index: int) -> int:
        """Return the position in the channel of a page, or of a zero page's entry."""
        return self.offset + index * self.stride


@dataclass(frozen=True, eq=False)
class EncodedRun:
    """Consecutive records of one RAM block and one encoding; what they encode was not looked at.

    `offsets` (n,): as in PageRun. `data`: the bytes given to the reader, in which encoding `i` is
    `sizes[i]` bytes from `starts[i]` on (both (n,)); valid until the reader's next call.
    `continued`: the first record names no block, as those behind it.
    """

    HEAD_SIZE: ClassVar[int]
    """Bytes of a record before its encoding, where it continues a block."""

    offset: int
    block: RamBlock
    block_index: int
    offsets: npt.NDArray[np.uint64]
    data: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.intp]
    sizes: npt.NDArray[np.intp]
    continued: bool = False

    def encoding_offset(self, index: int) -> int:
        """The position in the stream of an encoding."""
        name = 0 if self.continued else 1 + len(self.block.name.encode())
        return self.offset + name + self.HEAD_SIZE + int(self.starts[index] - self.starts[0])

    def record_offset(self, index: int) -> int:
        """The position in the stream of a record."""
        return self.encoding_offset(index) - self.HEAD_SIZE if index else self.offset


class XbzrleRun(EncodedRun):
    """XBZRLE records: see `xbzrle` for what they encode."""

    HEAD_SIZE = XBZRLE_HEAD_SIZE


class CompressedRun(EncodedRun):
    """COMPRESS_PAGE records: see `compress` for what they encode."""

    HEAD_SIZE = COMPRESSED_HEAD_SIZE


@dataclass(frozen=True)
class MultifdFlush:
    """The MULTIFD_FLUSH record."""

    offset: int


@dataclass(frozen=True)
class EndOfRam:
    """The EOS record: end of this piece of `ram`."""

    offset: int


@dataclass(frozen=True)
class Footer:
    """The footer of a piece of an iterative section."""

    offset: int
    section_id: int


@dataclass(frozen=True)
class NoFooters:
    """Seen here, of no bytes: sections have no footers, as with machine types before 2.4.

    Where device sections end is then known from the description alone.
    """

    offset: int


@dataclass(frozen=True)
class DeviceSection:
    """A SECTION_FULL with its footer: one device, carried verbatim.

    `payload_offset`: position of the payload in the stream. `footer`: whether one follows.
    """

    offset: int
    section_id: int
    name: str
    instance_id: int
    version: int
    payload: Payload = field(repr=False)
    payload_offset: int = 0
    footer: bool = True


@dataclass(frozen=True)
class UnsplitDevices:
    """Device sections that cannot be told apart: no footers, and no description that fits."""

    offset: int
    data: Payload = field(repr=False)


@dataclass(frozen=True)
class Command:
    """A COMMAND with its data.

    PACKAGED: its data is a be32, the number of bytes that the events behind it fill.
    """

    offset: int
    command: int
    data: bytes = b""


@dataclass(frozen=True)
class EndOfStream:
    """The EOF byte: the guest is complete."""

    offset: int


@dataclass(frozen=True)
class Description:
    """The JSON behind the end of the stream: as it was on the wire, and parsed."""

    offset: int
    text: bytes = field(repr=False)
    json: dict[str, Any] = field(repr=False)


Event: TypeAlias = (
    Header
    | Configuration
    | IterativeSection
    | RamBlocks
    | PageRun
    | XbzrleRun
    | CompressedRun
    | MultifdFlush
    | EndOfRam
    | DiskEvent
    | BitmapChunk
    | HtabEvent
    | StorageAttributes
    | OpaquePiece
    | Footer
    | NoFooters
    | DeviceSection
    | UnsplitDevices
    | Command
    | EndOfStream
    | Description
)
