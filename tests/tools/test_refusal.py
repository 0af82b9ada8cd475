"""`vmferry receive` refuses what it cannot apply, though the reader reads it."""

from __future__ import annotations

from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.errors import UnsupportedError
from vmferry.protocol.stream import SectionType
from vmferry.receiver.refusal import refuse


def _shared(streams: Any) -> list[events.Event]:
    blocks = (events.RamBlock("ram", 8192, address=0),)
    head = events.Configuration(0, "pc", None, ("events", "x-ignore-shared"))
    return [events.Header(0), head, *streams.opening(blocks)[3:], *streams.closing()]


def _compressed(streams: Any) -> list[events.Event]:
    piece = streams.piece(SectionType.PART, streams.zipped(0, {1: b"x"}))
    return [*streams.opening(), *piece, *streams.closing()]


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (_shared, "(section 'configuration'): capability x-ignore-shared is not supported"),
        (_compressed, "(section 'ram'): COMPRESS_PAGE records are not supported"),
    ],
)
def test_refused_in_one_line(made: Any, error: str, streams: Any, vmferry: Any) -> None:
    """Broken: a guest would be started without some of its RAM, or with wrong RAM."""
    path = vmferry.write("stream", streams.to_bytes(made(streams)))
    assert vmferry.call("verify", path).exit_code == 0
    guest = vmferry.folder / "guest"
    ran = vmferry.run("receive", f"file:{path}", "--guest", f"dir:{guest}")
    assert ran.status == 1
    assert ran.error.startswith("offset 0x")
    assert ran.error.endswith(error)
    assert not guest.exists()


@pytest.mark.parametrize("made", [_shared, _compressed])
def test_refused_where_it_stands(made: Any, streams: Any) -> None:
    """Broken: the error would point somewhere else, or an ordinary stream be refused."""
    refused = []
    for event in made(streams):
        try:
            refuse(event)
        except UnsupportedError as error:
            refused.append((error.offset, event.offset))
    assert refused
    assert all(place == offset for place, offset in refused)
    for event in streams.events:
        refuse(event)
