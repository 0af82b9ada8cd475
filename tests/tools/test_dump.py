"""Test `vmferry dump`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vmferry.guest.sizes import format_size
from vmferry.protocol import events

from tests import streams
from tests.protocol.kinds import KINDS


def test_text(vmferry: Any) -> None:
    """Broken: people would be told something else than what the stream holds."""
    result = vmferry.call("dump", vmferry.write("stream", streams.SMALL))
    assert result.exit_code == 0
    lines = [line.split("  ") for line in result.stdout.splitlines()]
    words = [[word.strip() for word in line if word.strip()] for line in lines]
    assert ["machine", "pc-q35-7.2"] in words
    assert ["page size", "4096"] in words
    assert ["section", "ram, 4 pieces, 3 rounds, 141.8 KiB"] in words
    assert ["devices", "4 sections, 1.1 KiB"] in words
    assert ["description", f"yes, {len(streams.DESCRIPTION.text)} B"] in words
    assert ["capabilities events"] in words
    assert ["pc.ram", "1.0 MiB", "33", "153", "3"] in words
    assert ["/rom@etc/acpi", "32.0 KiB", "2", "0", "0"] in words
    assert f"({len(streams.SMALL)} bytes)" in result.stdout


def test_json_keys_are_stable(vmferry: Any) -> None:
    """Broken: every program that reads the answer would break."""
    result = vmferry.call("dump", "--json", vmferry.write("stream", streams.SMALL))
    found = json.loads(result.stdout)
    devices = found.pop("devices")
    # From its first piece up to the first device behind it.
    first, last = (streams.SMALL.index(b"\x03ram"), streams.SMALL.index(b"\x03cpu"))
    ram_size = last - first
    assert found == {
        "container": {"layers": [], "libvirt": None},
        "machine": "pc-q35-7.2",
        "page_size": 4096,
        "capabilities": ["events"],
        "size": len(streams.SMALL),
        "ram_parts": 2,
        "commands": [],
        "blocks": [
            {
                "name": "pc.ram",
                "length": 1 << 20,
                "absent": False,
                "plain": 33,
                "zero": 153,
                "xbzrle": 3,
                "compressed": 0,
            },
            {
                "name": "/rom@etc/acpi",
                "length": 32 << 10,
                "absent": False,
                "plain": 2,
                "zero": 0,
                "xbzrle": 0,
                "compressed": 0,
            },
        ],
        "rounds": [
            {"plain": 25, "zero": 152, "xbzrle": 0, "compressed": 0},
            {"plain": 10, "zero": 1, "xbzrle": 0, "compressed": 0},
            {"plain": 0, "zero": 0, "xbzrle": 3, "compressed": 0},
        ],
        "sections": [
            {
                "name": "ram",
                "section_id": 2,
                "instance_id": 0,
                "version": 4,
                "pieces": 4,
                "size": ram_size,
                "known": True,
            }
        ],
        "unsplit_devices": 0,
        "behind": None,
        "footers": True,
        "description": True,
        "channels": [],
    }
    assert [device["name"] for device in devices] == ["early", "cpu", "cpu", "0000:00:02.0/vga"]
    cpu = devices[1]
    payload = streams.SMALL[cpu["offset"] : cpu["offset"] + cpu["size"]]
    assert payload == bytes(range(256)) * 4
    assert {key: cpu[key] for key in ("section_id", "instance_id", "version")} == {
        "section_id": 3,
        "instance_id": 0,
        "version": 1,
    }


def test_pages_are_where_it_says(vmferry: Any) -> None:
    """Broken: whoever looks a page up in the stream or in RAM would find another one."""
    result = vmferry.call("dump", "--json", "--pages", vmferry.write("stream", streams.SMALL))
    *ranges, summary = map(json.loads, result.stdout.splitlines())
    assert summary["machine"] == "pc-q35-7.2"
    assert [(r["block"], r["first"] >> 12, r["count"], r["kind"], r["fill"]) for r in ranges] == [
        ("pc.ram", 0, 20, "plain", None),
        ("pc.ram", 40, 2, "plain", None),
        ("pc.ram", 60, 1, "plain", None),
        ("pc.ram", 100, 150, "zero", 0),
        ("pc.ram", 21, 2, "zero", 0x5A),
        ("/rom@etc/acpi", 3, 1, "plain", None),
        ("/rom@etc/acpi", 1, 1, "plain", None),
        ("pc.ram", 1, 1, "zero", 0),
        ("pc.ram", 200, 10, "plain", None),
        ("pc.ram", 203, 2, "xbzrle", None),
        ("pc.ram", 30, 1, "xbzrle", None),
    ]
    for found in ranges:
        header = int.from_bytes(streams.SMALL[found["offset"] : found["offset"] + 8], "big")
        assert header & ~0xFFF == found["first"]


def test_pages_as_text(vmferry: Any) -> None:
    """Broken: people could not see which pages a stream carries, or how."""
    result = vmferry.call("dump", "--pages", vmferry.write("stream", streams.SMALL))
    ranges = [line.split() for line in result.stdout.splitlines()[:5]]
    assert [words[1:] for words in ranges] == [
        ["pc.ram", "0x0", "20", "plain"],
        ["pc.ram", "0x28000", "2", "plain"],
        ["pc.ram", "0x3c000", "1", "plain"],
        ["pc.ram", "0x64000", "150", "zero"],
        ["pc.ram", "0x15000", "2", "zero", "(all", "0x5a)"],
    ]


def test_devices(vmferry: Any) -> None:
    """Broken: people could not find a device's state in the stream."""
    result = vmferry.call("dump", "--devices", vmferry.write("stream", streams.SMALL))
    rows = [line.split() for line in result.stdout.splitlines()]
    header = rows.index(["id", "device", "instance", "version", "offset", "bytes"])
    assert [row[:4] for row in rows[header + 1 :]] == [
        ["1", "early", "0", "1"],
        ["3", "cpu", "0", "1"],
        ["4", "cpu", "1", "1"],
        ["5", "0000:00:02.0/vga", "0", "1"],
    ]
    offset, size = (int(word, 0) for word in rows[header + 2][4:])
    assert streams.SMALL[offset : offset + size] == bytes(range(256)) * 4


def test_from_standard_input(vmferry: Any) -> None:
    """Broken: `zstd -dc file | vmferry dump -` would not work."""
    result = vmferry.call("dump", "--json", "-", feed=streams.SMALL)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["size"] == len(streams.SMALL)


@pytest.mark.parametrize("name", ["[red]x[/foo]", ":smile:", "x" * 200])
def test_names_are_shown_as_they_are(name: str, vmferry: Any) -> None:
    """Broken: a name in a stream would be taken for markup, be cut, or be a traceback."""
    blocks = (events.RamBlock(name, 4096),)
    data = streams.to_bytes([*streams.opening(blocks), *streams.closing()])
    result = vmferry.call("dump", "--devices", vmferry.write("stream", data))
    assert result.exit_code == 0
    assert f" {name} " in result.stdout


def test_name_that_the_terminal_lacks(vmferry: Any) -> None:
    """Broken: one odd letter in a name would be a traceback where output is not UTF-8."""
    blocks = (events.RamBlock("\u540d", 4096),)
    path = vmferry.write("stream", streams.to_bytes([*streams.opening(blocks), *streams.closing()]))
    command = [sys.executable, "-m", "vmferry.tools.cli", "dump", path]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\\u540d" in ran.stdout


@pytest.mark.parametrize("options", [(), ("--json",), ("--pages",)])
def test_damage_is_one_line_with_its_place(options: tuple[str, ...], vmferry: Any) -> None:
    """Broken: a user would not learn what is wrong, or where."""
    size = len(streams.SMALL) - 100
    path = vmferry.write("stream", streams.SMALL[:size])
    result = vmferry.call("dump", *options, path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"vmferry: {path}: offset {size:#x}")
    assert result.stderr.count("\n") == 1


def test_not_a_stream(vmferry: Any) -> None:
    """Broken: any other file would be a traceback."""
    for data in (b"", b"Q", b"#!/bin/sh\nexit 0\n", bytes(100_000)):
        result = vmferry.call("dump", vmferry.write("other", data))
        assert result.exit_code == 1
        assert result.stderr.startswith(f"vmferry: {vmferry.folder}/other: offset 0x")


def test_no_file(vmferry: Any) -> None:
    """Broken: a missing file, or a folder, would be a traceback or not be named."""
    result = vmferry.call("dump", f"{vmferry.folder}/none")
    assert result.exit_code == 1
    assert result.stderr == f"vmferry: {vmferry.folder}/none: No such file or directory\n"
    result = vmferry.call("dump", str(vmferry.folder))
    assert (
        result.stderr == f"vmferry: {vmferry.folder}: a folder, not a stream: name the file in it\n"
    )


@pytest.mark.parametrize("options", [("--pages",), ("--pages", "--json")])
def test_reader_that_leaves(options: tuple[str, ...], tmp_path: Path) -> None:
    """Broken: `vmferry dump --pages x | head -1` would end in a traceback."""
    runs = [streams.page_run(0, range(number % 50, 256, 7), 0) for number in range(3000)]
    (tmp_path / "stream").write_bytes(streams.stream_with(*runs))
    command = [sys.executable, "-m", "vmferry.tools.cli", "dump", *options, f"{tmp_path}/stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"pc.ram" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def _dumped(kind: str, vmferry: Any) -> tuple[dict[str, Any], str]:
    path = vmferry.write("stream", streams.to_bytes(KINDS[kind]))
    text, found = vmferry.call("dump", path), vmferry.call("dump", "--json", path)
    return json.loads(found.stdout), text.stdout


@pytest.mark.parametrize(
    ("kind", "name", "version", "known"),
    [
        ("block", "block", 1, True),
        ("storage-attributes", "s390-storage_attributes", 0, True),
        ("opaque", "vfio", 1, False),
    ],
)
def test_other_sections_are_named(
    kind: str, name: str, version: int, known: bool, vmferry: Any
) -> None:
    """Broken: nobody would learn that a stream holds more than RAM and devices."""
    found, text = _dumped(kind, vmferry)
    section = {"name": name, "section_id": 9, "instance_id": 0, "version": version}
    (other,) = [each for each in found["sections"] if each["name"] != "ram"]
    size = other.pop("size")
    assert other == {**section, "pieces": 3, "known": known}
    # All pieces, with their headers and footers.
    assert size == sum(len(raw) for raw in _pieces(kind, name))
    unknown = "" if known else ", of an unknown kind"
    assert f"section      {name}, 3 pieces, {format_size(size)}{unknown}\n" in text


def _pieces(kind: str, name: str) -> Iterator[bytes]:
    """Return the events of a section in the order of the wire."""
    inside = False
    for event in KINDS[kind]:
        if isinstance(event, events.IterativeSection):
            inside = event.name == name
        if inside:
            yield streams.to_bytes([event])
        inside = inside and not isinstance(event, events.Footer)


def test_what_cannot_be_known_is_said(vmferry: Any) -> None:
    """Broken: device state that is there would not be shown at all."""
    found, text = _dumped("nothing-told", vmferry)
    assert found["machine"] is None
    assert (found["footers"], found["description"], found["devices"]) == (False, False, [])
    assert found["unsplit_devices"] == 312
    assert "machine      not named\n" in text
    assert "footers      no\n" in text
    assert "unsplit      312 bytes of devices" in text


def test_commands_are_named(vmferry: Any) -> None:
    """Broken: nobody would see that a stream is a postcopy's."""
    text = _dumped("postcopy", vmferry)[1]
    assert "POSTCOPY_ADVISE POSTCOPY_RAM_DISCARD PACKAGED POSTCOPY_LISTEN POSTCOPY_RUN\n" in text


def test_many_rounds_are_cut(vmferry: Any) -> None:
    """Broken: the page would be as long as the migration was."""
    parts = [streams.ram_part(streams.page_run(0, [n % 3, 9], 0)) for n in range(40)]
    made = [*streams.opening(), *(event for part in parts for event in part), *streams.closing()]
    lines = vmferry.call("dump", vmferry.write("stream", streams.to_bytes(made))).stdout
    assert ", 40 rounds, " in lines
    shown = lines.split(" round")[-1].splitlines()[1:]
    assert [line.split()[0] for line in shown] == [*"012345", "...", *map(str, range(34, 40))]
