"""Law 8: no source passes whose destination does not confirm the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol import events
from vmferry.protocol.wire.marks import CommandType
from vmferry.relay.gate import Gate

from tests.streams import PAGE, RETURN_PATH, ram_start, to_bytes


def stream(*, return_path: bool) -> bytes:
    """Return a stream up to its first section."""
    configuration = events.Configuration(0, "pc-q35-7.2", PAGE)
    wishes = [RETURN_PATH, events.Command(0, CommandType.PING, bytes(4))] if return_path else []
    return to_bytes([events.Header(0), configuration, *wishes, *ram_start()])


def verdict(data: bytes, cuts: list[int]) -> str | None:
    """Return what the gate says of `data`, which arrives in pieces."""
    gate, at = Gate(), 0
    found: str | None = ""
    while found == "" and at < len(data):
        size = cuts[at % len(cuts)]
        found = gate(memoryview(data)[at : at + size])
        at += size
    return gate(memoryview(b"")) if found == "" else found


CUTS = st.lists(st.integers(1, 100), min_size=1, max_size=5)


@given(CUTS)
def test_a_source_with_a_return_path_passes(cuts: list[int]) -> None:
    """Broken: nothing would pass, or only what arrives in pieces of some sizes."""
    assert verdict(stream(return_path=True), cuts) is None


@given(CUTS)
def test_a_source_without_a_return_path_is_refused(cuts: list[int]) -> None:
    """Broken: law 8; the source would be done before its destination has the guest."""
    assert "--one-way" in (verdict(stream(return_path=False), cuts) or "")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\x16\x03\x01\x02\x00", "encrypted"),
        (b"\x28\xb5\x2f\xfd\x04", "leave that to the relay"),
        (b"QEVM\0\0\0\x09", "damaged stream"),
        (b"QEVM\0\0\0\x03\x07", "ended its stream"),
    ],
)
def test_what_cannot_be_seen_is_refused(head: bytes, words: str) -> None:
    """Broken: law 8 would hold only for streams that are easy to read."""
    assert words in (verdict(head, [len(head)]) or "")


@pytest.mark.parametrize("head", [b"\x11\x22\x33\x44", b"NBDMAGIC", b"x", b""])
def test_other_connections_pass(head: bytes) -> None:
    """Broken: channels of multifd and disks' connections would not reach the destination."""
    assert verdict(head, [1]) is None
