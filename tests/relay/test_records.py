"""The records of a relay's link: what is written is read again, and damage is never read."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol.formats import link
from vmferry.protocol.formats.link import LinkError, Record
from vmferry.protocol.formats.stored_frames import StoredFrame, stored
from vmferry.protocol.formats.zstd import MAX_BLOCK, CompressedError
from vmferry.protocol.wire.link import MAX_REASON

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
TEXT = st.text(max_size=MAX_REASON).map(link.reason_of)
B16, B32 = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)
U8, U16 = st.integers(0, 255), st.integers(0, 65535)

RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(link.Hello, U16, B16, B16, U8, U8, U8),
    st.builds(link.Challenge, U16, B16),
    st.builds(link.Proof, B32),
    st.builds(link.Welcome, B32),
    st.builds(link.Refused, TEXT),
    st.builds(link.Outcome, B32, U8, TEXT),
    st.builds(link.Open, U32),
    st.builds(link.Data, U32, U64, U32, U32),
    st.builds(link.End, U32, U64),
    st.builds(link.Reset, U32, TEXT),
    st.builds(link.Taken, U32, U64),
    st.builds(link.Closed, U32),
    st.just(link.Alive()),
    st.just(link.Bye()),
)


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    """Broken: two relays would not understand each other."""
    raw = link.build_record(record)
    assert link.content_size(raw[: link.HEAD_SIZE]) == len(raw) - link.HEAD_SIZE
    assert link.read_record(raw[link.HEAD_SIZE :]) == record


@given(st.lists(st.tuples(RECORDS, st.binary(max_size=300)), min_size=1, max_size=5))
def test_records_and_frames_are_a_zstd_file(parts: list[tuple[Record, bytes]]) -> None:
    """Broken: a capture of the link could not be decompressed by `zstd`."""
    written, content = b"", b""
    for record, data in parts:
        written += link.build_record(record)
        written += b"".join(stored(memoryview(data), checksum=True)) if data else b""
        content += data
    with zstandard.ZstdDecompressor().stream_reader(written, read_across_frames=True) as reader:
        assert reader.read() == content


@given(RECORDS, st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_damage_is_noticed(record: Record, place: float, value: int) -> None:
    """Broken: a damaged record would acknowledge, end or open something that nobody meant."""
    raw = bytearray(link.build_record(record))
    raw[int(place * len(raw))] ^= value
    with pytest.raises(LinkError):
        _read(bytes(raw))


@given(st.binary(min_size=8, max_size=600))
def test_garbage_is_refused(data: bytes) -> None:
    """Broken: a stranger on the port would end the relay, or be taken for the other one."""
    with pytest.raises(LinkError):
        _read(data)


def _read(raw: bytes) -> Record:
    size = link.content_size(raw[: link.HEAD_SIZE])
    if size != len(raw) - link.HEAD_SIZE:
        raise LinkError("waits for more, or finds the head of no record behind it")
    return link.read_record(raw[link.HEAD_SIZE :])


def _receive(raw: bytes | bytearray, size: int) -> bytes | None:
    """Return the content that a frame of `size` bytes fills; None if it is no stored one."""
    frame, at = StoredFrame(memoryview(bytearray(size))), 0
    assert frame.size == len(raw)
    for piece in frame.pieces:
        piece[:] = raw[at : at + len(piece)]
        at += len(piece)
    return bytes(frame.content) if frame.check() else None


@given(st.binary(min_size=1, max_size=1000), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_damaged_stored_frame_is_not_handed_on(data: bytes, place: float, value: int) -> None:
    """Broken: bytes that changed on the link would reach the guest."""
    raw = bytearray(b"".join(stored(memoryview(data), checksum=True)))
    assert _receive(raw, len(data)) == data
    raw[int(place * len(raw))] ^= value
    try:
        found = _receive(raw, len(data))
    except CompressedError:
        return
    assert found is None


@given(st.sampled_from([1, MAX_BLOCK, MAX_BLOCK + 1, 8 * MAX_BLOCK]))
def test_a_stored_frame_of_any_size_arrives_in_one_piece(size: int) -> None:
    """Broken: a block would be torn or its parts would change places, or zstd could not read it."""
    data = random.Random(size).randbytes(size)
    raw = b"".join(stored(memoryview(data), checksum=True))
    assert _receive(raw, size) == data
    assert zstandard.decompress(raw) == data
