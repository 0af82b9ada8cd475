"""Declare the events of a stream, which the reader returns and the writer takes.

The events of iterative sections other than `ram` are in `section_events`. Every event has
`offset`: the position in the stream of its first byte (the writer ignores it). Writing the events
of a stream in order reproduces the bytes of that stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from .section_events import BitmapChunk, DiskEvent, HtabEvent, StorageAttributes
from .wire.kept import Payload
from .wire.mapped_ram import MappedRam
from .wire.marks import DEFAULT_PAGE_SIZE, SectionType
from .wire.ram import (
    COMPRESSED_HEAD_SIZE,
    RECORD_HEADER_SIZE,
    SECTION_NAME,
    SECTION_VERSION,
    XBZRLE_HEAD_SIZE,
)


@dataclass(frozen=True)
class Header:
    """The magic and version at the start of a stream."""

    offset: int
    version: int = 3


@dataclass(frozen=True)
class Configuration:
    """The source's machine: name, page size, capabilities and UUID.

    `page_size` in bytes; `uuid`: 16 bytes. A value is None if the stream does not carry its
    subsection.
    """

    offset: int
    machine: str
    page_size: int | None = None
    capabilities: tuple[str, ...] | None = None
    uuid: bytes | None = None


@dataclass(frozen=True)
class IterativeSection:
    """The header of one piece of an iterative section.

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
    """The header of one piece of the `ram` section."""

    name: str = SECTION_NAME
    version: int = SECTION_VERSION


@dataclass(frozen=True)
class OpaquePiece:
    """The payload of a piece of an iterative section of unknown format, carried verbatim."""

    offset: int
    payload: Payload = field(repr=False)


@dataclass(frozen=True)
class RamBlock:
    """A RAM block as the stream announces it; `length` in bytes.

    The other fields are None unless the wire carries them. `page_size`: bytes of the pages of host
    memory that back the block, with postcopy. `address`: guest-physical, with x-ignore-shared.
    `mapped`: the place of the block in the file, with mapped-ram.
    """

    name: str
    length: int
    page_size: int | None = None
    address: int | None = None
    mapped: MappedRam | None = None

    @property
    def may_be_absent(self) -> bool:
        """Return whether the block's pages may be left out as shared (x-ignore-shared).

        A mapped-ram file marks such blocks. In other streams an announced address means that the
        pages may be left out, in which case no page of the block arrives.
        """
        if self.mapped is not None:
            return not self.mapped.present
        return self.address is not None


@dataclass(frozen=True)
class RamBlocks:
    """The MEM_SIZE record: all RAM blocks, and the sum of their lengths.

    With mapped-ram, the entries lie between the pages; `mapped_pages.list_pieces` writes them.
    `page_size`: bytes of the guest's pages as the reader assumes them; this record does not carry
    it.
    """

    offset: int
    total: int
    blocks: tuple[RamBlock, ...]
    page_size: int = DEFAULT_PAGE_SIZE


@dataclass(frozen=True, eq=False)
class PageRun:
    """Consecutive page records of one RAM block.

    `offsets` (n,): position of each page in the block, in bytes. `data` (n, page_size): a view of
    the bytes given to the reader, valid until its next call; None for ZERO records, whose pages all
    hold the byte `fill`. `continued`: the first record has the flag CONTINUE and carries no block
    name, like the records after it. `position`: index in the parsed view of the first page (or fill
    byte); the next ones follow 8 + page_size (or 9) bytes apart.
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
        """Return the position in the stream of record `index` of the run."""
        name = 0 if self.continued else 1 + len(self.block.name.encode())
        body = 1 if self.data is None else self.data.shape[1]
        # Only the first record carries the block's name.
        return self.offset + (name + index * (RECORD_HEADER_SIZE + body) if index else 0)


@dataclass(frozen=True, eq=False)
class MappedRun(PageRun):
    """Neighbouring pages of a mapped-ram file, which has no page records (see `mapped_pages`)."""

    def record_offset(self, index: int) -> int:
        """Return the position in the stream of page `index` of the run."""
        return self.offset + int(self.offsets[index] - self.offsets[0])


@dataclass(frozen=True, eq=False)
class MixedRun(PageRun):
    """Consecutive records of plain and zero pages of one RAM block, without their data.

    Only a reader that was made with `mixed` returns it. `zero` (n,): whether each record is ZERO.
    The writer does not take it, and `offset` is all that is known of where its records are.
    """

    zero: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


@dataclass(frozen=True, eq=False)
class MultifdRun(PageRun):
    """Pages of one packet of a multifd channel, which has no page records.

    `channel`: its number. `offset`: position in the channel of the first page (for zero pages: of
    its entry among the packet's offsets). `stride`: bytes from one page to the next, 0 if the pages
    are compressed together.
    """

    channel: int = 0
    stride: int = 0

    def record_offset(self, index: int) -> int:
        """Return the position in the channel of a page, or of a zero page's entry."""
        return self.offset + index * self.stride


@dataclass(frozen=True, eq=False)
class EncodedRun:
    """Consecutive records of one RAM block and one encoding, whose encoded data is not yet checked.

    `offsets` (n,): position of each page in the block, in bytes. `data`: the bytes given to the
    reader, valid until its next call; encoding `i` is the `sizes[i]` bytes from `starts[i]` on
    (both (n,)). `continued`: the first record has the flag CONTINUE and carries no block name, like
    the records after it.
    """

    HEAD_SIZE: ClassVar[int]
    """Bytes of a record before its encoding, if the record has the flag CONTINUE."""

    offset: int
    block: RamBlock
    block_index: int
    offsets: npt.NDArray[np.uint64]
    data: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.intp]
    sizes: npt.NDArray[np.intp]
    continued: bool = False

    def encoding_offset(self, index: int) -> int:
        """Return the position in the stream of encoding `index` of the run."""
        name = 0 if self.continued else 1 + len(self.block.name.encode())
        return self.offset + name + self.HEAD_SIZE + int(self.starts[index] - self.starts[0])

    def record_offset(self, index: int) -> int:
        """Return the position in the stream of record `index` of the run."""
        return self.encoding_offset(index) - self.HEAD_SIZE if index else self.offset


class XbzrleRun(EncodedRun):
    """Consecutive XBZRLE records; module `xbzrle` decodes them."""

    HEAD_SIZE = XBZRLE_HEAD_SIZE


class CompressedRun(EncodedRun):
    """Consecutive COMPRESS_PAGE records; module `zlib_pages` decodes them."""

    HEAD_SIZE = COMPRESSED_HEAD_SIZE


@dataclass(frozen=True)
class MultifdFlush:
    """The MULTIFD_FLUSH record, a sync point of the multifd channels."""

    offset: int


@dataclass(frozen=True)
class EndOfRam:
    """The EOS record, which ends a piece of the `ram` section."""

    offset: int


@dataclass(frozen=True)
class Footer:
    """The footer of a piece of an iterative section."""

    offset: int
    section_id: int


@dataclass(frozen=True)
class NoFooters:
    """Zero-length event: this stream has no section footers, as with machine types before 2.4.

    Only the description then says where device sections end.
    """

    offset: int


@dataclass(frozen=True)
class DeviceSection:
    """A SECTION_FULL with its footer: the state of one device, carried verbatim.

    `payload_offset`: position of the payload in the stream. `footer`: whether a footer follows.
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
    """Device sections that cannot be separated: no footers, and no description that fits."""

    offset: int
    data: Payload = field(repr=False)


@dataclass(frozen=True)
class Command:
    """A COMMAND with its data.

    The data of PACKAGED is a be32: the number of bytes that the following events fill.
    """

    offset: int
    command: int
    data: bytes = b""


@dataclass(frozen=True)
class EndOfStream:
    """The EOF byte, which completes the guest."""

    offset: int


@dataclass(frozen=True)
class Description:
    """The JSON description after the end of the stream: its bytes on the wire, and parsed."""

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
