"""Read and write the iterative section `block`, whose declarations are in `wire.block`."""

from __future__ import annotations

from ..errors import StreamError
from ..section_events import DiskBlock, DiskEvent, DiskProgress, EndOfDisks
from ..wire.block import BLOCK_SIZE, SECTION_NAME, SECTOR_BITS, BlockFlag, RecordHeader
from ..wire.cursor import Cursor, decode_name
from ..wire.marks import SectionType
from ..wire.stream import Str8

_DATA, _ZEROS = BlockFlag.DEVICE_BLOCK, BlockFlag.DEVICE_BLOCK | BlockFlag.ZERO_BLOCK


class BlockReader:
    """Reader of one `block` section, over all its pieces."""

    def __init__(self) -> None:
        self.at_end = False
        self._block: tuple[int, str, int] | None = None
        self._data = bytearray()

    def begin(self, kind: SectionType) -> None:  # noqa: ARG002
        """Begin a piece of the section."""
        self.at_end = False

    def read(self, cursor: Cursor) -> list[DiskEvent]:
        """Return the events of the next record; none while the data of a block is incomplete."""
        if self._block is not None:
            block = DiskBlock(*self._block, cursor.gather(self._data, BLOCK_SIZE))
            self._block = None
            return [block]
        offset, value = cursor.offset, cursor.take(RecordHeader)
        number, flags = value >> SECTOR_BITS, value & ((1 << SECTOR_BITS) - 1)
        if value == BlockFlag.EOS:
            self.at_end = True
            return [EndOfDisks(offset)]
        if flags == BlockFlag.PROGRESS:
            return [DiskProgress(offset, number)]
        if flags not in (_DATA, _ZEROS):
            raise StreamError(f"{value:#018x} is no record", offset=offset, section=SECTION_NAME)
        device = _device_name(cursor.take(Str8), offset)
        if flags == _ZEROS:
            return [DiskBlock(offset, device, number, None)]
        self._block = (offset, device, number)
        return []


def _device_name(raw: bytes, offset: int) -> str:
    # A disk that QEMU knows only by its node has an empty name here.
    name = decode_name(raw) if raw else ""
    if name is None:
        raise StreamError(f"a disk named {raw!r}", offset=offset, section=SECTION_NAME)
    return name


def write_block(event: DiskBlock) -> bytes:
    """Return the bytes of a record for a block of a disk."""
    if event.data is not None:
        return write_data_head(event.device, event.sector) + event.data
    header = RecordHeader.build(event.sector << SECTOR_BITS | _ZEROS)
    return bytes(header + Str8.build(event.device.encode()))


def write_data_head(device: str, sector: int) -> bytes:
    """Return what stands before the data of a block of a disk."""
    header = RecordHeader.build(sector << SECTOR_BITS | _DATA)
    return bytes(header + Str8.build(device.encode()))


def write_progress(event: DiskProgress) -> bytes:
    """Return the bytes of a PROGRESS record."""
    return bytes(RecordHeader.build(event.percent << SECTOR_BITS | BlockFlag.PROGRESS))


def write_end(_: EndOfDisks) -> bytes:
    """Return the bytes of an EOS record."""
    return bytes(RecordHeader.build(int(BlockFlag.EOS)))
