"""`vmferry receive` refuses what it cannot apply, though the reader reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.errors import UnsupportedError
from vmferry.receiver.refusal import refuse

from tests import streams
from tests.protocol.kinds import KINDS

REFUSED = {
    "htab": "(section 'spapr/htab'): this kind of iterative section is",
    "storage-attributes": "(section 's390-storage_attributes'): this kind of iterative section is",
    "opaque": "(section 'vfio'): this kind of iterative section is",
    "pages": "(section 'ram'): COMPRESS_PAGE records are",
    "shared": "(section 'configuration'): capability x-ignore-shared is",
    "postcopy": ": command POSTCOPY_RAM_DISCARD is",
    "no-footers": ": sections without footers (very old machine types) are",
    "nothing-told": ": sections without footers (very old machine types) are",
}


APPLIED = ("block", "dirty-bitmap")
"""Kinds of streams with another section than RAM that a receiver applies."""
STREAMS = {kind: streams.to_bytes(made) for kind, made in KINDS.items()}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_line(kind: str, vmferry: Any) -> None:
    """Broken: a guest would be started without some of its state, or with wrong RAM."""
    path = vmferry.write("stream", STREAMS[kind])
    assert json.loads(vmferry.call("verify", "--json", path).stdout)["valid"]
    guest = vmferry.folder / "guest"
    ran = vmferry.run("receive", f"file:{path}", "--guest", f"dir:{guest}", "--workers", "0")
    assert ran.status == 1
    assert ran.error.startswith("offset 0x")
    assert ran.error.endswith(f"{REFUSED[kind]} not supported")
    assert not guest.exists()


def _refuse_all(made: list[events.Event]) -> None:
    for event in made:
        refuse(event)


def test_each_kind_is_refused() -> None:
    """Broken: a new kind of stream would reach the receiver, which cannot apply it."""
    assert {*REFUSED, *APPLIED} == STREAMS.keys()
    for kind in REFUSED:
        with pytest.raises(UnsupportedError):
            _refuse_all(KINDS[kind])


def test_ordinary_streams_are_not_refused() -> None:
    """Broken: what can be received would not be."""
    _refuse_all(streams.EVENTS)
    for kind in APPLIED:
        _refuse_all(KINDS[kind])
    with pytest.raises(UnsupportedError, match="COMPRESS_PAGE"):
        _refuse_all(streams.every_event())
