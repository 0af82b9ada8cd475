"""Streams of every kind that a real QEMU makes: read, written again, and rebuilt as it does."""

from __future__ import annotations

import json
import time
from pathlib import Path

from vmferry.protocol import events
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.writer import StreamWriter

from tests.qemu.machine import (
    MANY_PAGES,
    Machine,
    rebuilt_stream,
    stock_ram,
    vmferry,
)


def read(stream: Path) -> list[events.Event]:
    """Its events, which make its bytes again."""
    data, reader = stream.read_bytes(), StreamReader()
    found = reader.feed(data) + reader.close()
    assert b"".join(map(StreamWriter().write, found)) == data
    return found


def check(stream: Path, *options: str) -> None:
    """`verify` accepts it."""
    checked = vmferry("verify", str(stream), *options)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def pages_of(stream: Path, kind: str) -> int:
    """Pages of a kind, as `dump` counts them."""
    dumped = vmferry("dump", "--json", str(stream))
    assert dumped.returncode == 0, dumped.stderr
    return sum(block[kind] for block in json.loads(dumped.stdout)["blocks"])


def test_compress(tmp_path: Path) -> None:
    """Broken: RAM sent with `compress` would be built otherwise than by QEMU."""
    stream = tmp_path / "stream"
    source = Machine("7.2", tmp_path / "source", code=MANY_PAGES)
    try:
        source.wait_for_beats()
        source.enable("compress", "xbzrle")
        source.ask("migrate-set-parameters", **{"max-bandwidth": 16 << 20, "downtime-limit": 1})
        source.ask("migrate", uri=f"exec:cat > {stream}")
        time.sleep(1)
        source.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 34, "downtime-limit": 2000})
        source.wait_for("completed")
    finally:
        source.stop()
    read(stream)
    assert pages_of(stream, "compressed") > 100
    again = rebuilt_stream("7.2", tmp_path, stream, capabilities=("compress",))
    check(stream, *stock_ram(again, tmp_path))


def test_ignore_shared(version: str, tmp_path: Path) -> None:
    """Broken: the list of blocks with addresses would be misread, or shared RAM called wrong."""
    stream, shared = tmp_path / "stream", tmp_path / "shared"
    backend = f"memory-backend-file,id=ram0,size=32M,mem-path={shared},share=on"
    options = ("-object", backend, "-machine", "memory-backend=ram0")
    source = Machine(version, tmp_path / "source", *options)
    try:
        source.wait_for_beats()
        source.enable("x-ignore-shared")
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    (listed,) = (event for event in read(stream) if isinstance(event, events.RamBlocks))
    addresses = {block.name: block.address for block in listed.blocks}
    assert addresses["ram0"] == 0
    assert addresses["pc.bios"] == 0xFFFC0000
    again = rebuilt_stream(version, tmp_path, stream, *options, capabilities=("x-ignore-shared",))
    ram = stock_ram(again, tmp_path)
    check(stream, *(option for option in ram if not option.startswith("--ram=ram0=")))
    checked = vmferry("verify", str(stream), f"--ram=ram0={shared}")
    assert "it is shared (x-ignore-shared)" in checked.stderr
