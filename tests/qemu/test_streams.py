"""Streams of real QEMUs that are not in the table of `test_every_stream`: of old machine types,
and with less in them than usual, or more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.section_events import DiskBlock
from vmferry.protocol.wire.marks import CommandType
from vmferry.tools.compare.streams import compare_blocks
from vmferry.tools.rebuild.guest import RebuiltGuest, rebuild
from vmferry.tools.sources.stream_events import read_events

from tests.patience import wait_until
from tests.qemu.machine import MANY_PAGES, Machine, rebuilt_stream, stock_ram, vmferry
from tests.qemu.sink import Sink, replay
from tests.streams import read_file

Source = Callable[[Machine, Path], None]


def made(version: str, folder: Path, *options: str, **more: Any) -> Path:
    """Return the stream of a guest, which `send` migrates if the ordinary way will not do."""
    stream, send = folder / "stream", more.pop("send", _send)
    source = Machine(version, folder / "source", *options, **more)
    try:
        source.wait_for_beats()
        send(source, stream)
    finally:
        source.stop()
    return stream


def _send(source: Machine, stream: Path) -> None:
    source.migrate(f"exec:cat > {stream}")


def check(stream: Path, *options: str) -> str:
    """Check that `verify` accepts the stream; return what it prints besides."""
    checked = vmferry("verify", str(stream), *options)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return checked.stdout


def dumped(stream: Path) -> Any:
    """Return the output of `dump`."""
    ran = vmferry("dump", "--json", str(stream))
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_disk_that_ends_within_a_block(tmp_path: Path) -> None:
    """Broken: the end of a disk would be lost, or its padding be taken for more of it. No stock
    QEMU loads such a stream: it would write past the end."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(2 << 20) + os.urandom(3 * 512))
    drive = ("-drive", f"file={disk},format=raw,if=none,id=disk0")

    def send(source: Machine, stream: Path) -> None:
        source.begin_migration(f"exec:cat > {stream}", blk=True)
        source.wait_for("completed")

    stream = made("7.2", tmp_path, *drive, "-device", "virtio-blk,drive=disk0", send=send)
    found = [event for event in read_file(stream) if isinstance(event, DiskBlock)]
    blocks = {block.sector: block.data for block in found if block.device == "disk0"}
    assert b"".join(blocks[at] or b"" for at in sorted(blocks)).startswith(disk.read_bytes())
    assert dumped(stream)["sections"][0]["name"] == "block"
    check(stream)


def test_postcopy(version: str, tmp_path: Path) -> None:
    """Broken: what the source said up to the switch, and in the package of devices behind it, could
    not be read; the part of a postcopy before it is in `test_every_stream`."""

    def send(source: Machine, stream: Path) -> None:
        source.enable("postcopy-ram")
        sink = Sink(tmp_path / "sink", stream)
        limits = {"max-bandwidth": 4 << 20, "downtime-limit": 1}
        source.ask("migrate-set-parameters", **limits)
        source.ask("migrate", uri=f"unix:{tmp_path}/sink")
        wait_until(lambda: source.ask("query-migrate").get("ram", {}).get("transferred"))
        source.ask("migrate-start-postcopy")
        source.wait_for("completed")
        sink.close()

    stream = made(version, tmp_path, send=send, code=MANY_PAGES)
    found = read_file(stream)
    commands = {event.command for event in found if isinstance(event, events.Command)}
    for command in (CommandType.POSTCOPY_ADVISE, CommandType.POSTCOPY_RUN, CommandType.PACKAGED):
        assert command in commands
    assert not any(isinstance(event, events.Description) for event in found)
    assert len([event for event in found if isinstance(event, events.DeviceSection)]) > 20
    again, stock = (
        tmp_path / "again",
        Machine(version, tmp_path / "stock", "-S", "-incoming", "defer"),
    )
    try:
        stock.enable("postcopy-ram")
        replay(stream, stock, tmp_path / "incoming")
        stock.disable("postcopy-ram")
        stock.migrate(f"exec:cat > {again}")
    finally:
        stock.stop()
    check(stream, *stock_ram(again, tmp_path))


@pytest.mark.parametrize("machine", ["pc-i440fx-2.3", "pc-i440fx-2.2", "pc-i440fx-1.4"])
def test_old_machine_types(machine: str, tmp_path: Path) -> None:
    """Broken: RAM of a guest of an old machine type could not be had, or it would not be said what
    then cannot be known."""
    options = ("-machine", machine)
    stream = made("7.2", tmp_path, *options)
    found = read_file(stream)
    assert any(isinstance(event, events.NoFooters) for event in found)
    assert not any(isinstance(event, events.Configuration) for event in found)
    told = any(isinstance(event, events.Description) for event in found)
    assert told == (machine != "pc-i440fx-2.2")
    assert any(isinstance(event, events.UnsplitDevices) for event in found) != told
    again = rebuilt_stream("7.2", tmp_path, stream, *options)
    with ExitStack() as stack:
        ours, stock = (_rebuilt(path, stack) for path in (stream, again))
        assert ours.images
        assert list(compare_blocks(ours, stock)) == []
    assert ("bytes of devices: nothing separates them" in check(stream)) != told


def _rebuilt(stream: Path, stack: ExitStack) -> RebuiltGuest:
    with stream.open("rb") as file:
        return rebuild(read_events(file), stack)


def test_suppressed_description(version: str, tmp_path: Path) -> None:
    """Broken: a stream without description could not be read, or verify would not say what it then
    cannot check."""
    options = ("-machine", "suppress-vmdesc=on")
    stream = made(version, tmp_path, *options)
    assert not any(isinstance(event, events.Description) for event in read_file(stream))
    again = rebuilt_stream(version, tmp_path, stream, *options)
    said = check(stream, *stock_ram(again, tmp_path))
    assert "devices: the stream has no description of them" in said
