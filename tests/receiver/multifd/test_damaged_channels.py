"""Damaged channels: one line each, and no byte outside guest memory."""

from __future__ import annotations

import os

from vmferry.protocol.wire.multifd import Compression

from tests.fuzz.channels import DAMAGES, Memory, receive, run
from tests.protocol.channels import migration


def test_damaged_variants() -> None:
    """Broken: a source, or whoever damages what it sends, could write where it likes (law 6)."""
    refused = run(300)
    # A few kinds of damage hit what nobody reads, or pages, whose content may be anything.
    assert set(refused) == set(DAMAGES)
    assert refused.total() > 100
    assert refused["cut"] > 25


def test_sound_channel_is_written_by_the_same_code() -> None:
    """Broken: the test above would refuse everything, and prove nothing."""
    made, memory = migration(Compression.ZSTD, count=1), Memory()
    try:
        assert receive(made.channels[0], memory) == ""
        memory.check()
        image = memory.image()
    finally:
        os.close(memory.fd)
    # Two pages are made zero over the main channel.
    assert image["pc.rom"] == made.ram["pc.rom"]
    assert image["pc.ram"][10 * 4096 :] == made.ram["pc.ram"][10 * 4096 :]
