"""Test `vmferry diff`."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from vmferry.protocol import events
from vmferry.tools.compare.streams import compare_guests
from vmferry.tools.rebuild.guest import rebuild
from vmferry.tools.rebuild.page_ranges import PageRanges
from vmferry.tools.sources.stream_events import read_events

from tests import streams
from tests.tools.test_damage import MEMORY, peak_of

PAGE = 4096
ENTRIES = [
    {"name": "a", "type": "uint32", "size": 4},
    {"name": "regs", "type": "uint16", "size": 2, "array_len": 20},
    {"name": "log", "type": "buffer", "size": 40},
]
STATE = b"\0\0\0\1" + bytes(40) + bytes(range(40))


def make(
    devices: dict[tuple[str, int], bytes],
    *,
    blocks: tuple[events.RamBlock, ...] = streams.BLOCKS,
    runs: tuple[events.PageRun, ...] = (),
    whole: bool = True,
    entries: list[dict[str, Any]] | None = ENTRIES,
) -> bytes:
    """Return a stream with these devices, all described by `entries` (None: without description);
    `whole`: with all pages, as zero, before the `runs`.
    """
    sections = [
        streams.device(number, name, payload, instance)
        for number, ((name, instance), payload) in enumerate(devices.items(), 3)
    ]
    listed = [
        {"name": name, "instance_id": instance, "version": 1, "fields": entries}
        for name, instance in devices
    ]
    return streams.to_bytes(
        [
            *streams.opening(blocks),
            *(streams.zeros(blocks) if whole else ()),
            *streams.ram_part(*runs),
            *streams.closing(sections)[:-1],
            *([] if entries is None else [streams.description_of({"devices": listed})]),
        ]
    )


def test_equal(vmferry: Any) -> None:
    """Broken: two streams of one guest that were sent differently would count as different."""
    again = [*streams.opening(), *streams.zeros(), *streams.zeros()]
    again += streams.EVENTS[len(streams.opening()) :]
    one, other = vmferry.write("a", streams.to_bytes(again)), vmferry.write("b", streams.WHOLE)
    result = vmferry.call("diff", one, other)
    assert (result.exit_code, result.stdout) == (0, "equal: RAM and devices\n")
    result = vmferry.call("diff", "--json", one, "-", feed=streams.WHOLE)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "equal": True,
        "differing_pages": 0,
        "differing_fields": 0,
        "blocks": [],
        "devices": [],
        "absent": [],
        "behind": [None, None],
        "missing": [[], []],
    }


def test_all_that_differs(vmferry: Any) -> None:
    """Broken: something that differs would not be told, or told of another place."""
    changed = bytearray(STATE)
    changed[3], changed[9], changed[44 + 3] = 2, 7, 0xFF
    blocks = tuple(events.RamBlock(n, PAGE * c) for n, c in (("ram", 256), ("rom", 8), ("x", 1)))
    others = (*blocks[:1], events.RamBlock("rom", PAGE * 4), events.RamBlock("y", PAGE))
    first = make({("c", 0): STATE, ("c", 1): STATE, ("d", 0): STATE}, blocks=blocks)
    second = make(
        {("c", 0): STATE, ("c", 1): bytes(changed), ("e", 0): STATE},
        blocks=others,
        runs=(streams.page_run(0, [5, 6, 7, 200], 0x33, blocks=others),),
    )
    paths = vmferry.write("a", first), vmferry.write("b", second)
    result = vmferry.call("diff", *paths)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "ram: 4 pages differ, at 0x5000-0x8000, 0xc8000",
        "rom: 32768 bytes in the first, 16384 in the second",
        "x: only in the first",
        "y: only in the second",
        "c#1: 3 fields differ",
        "  a: 0x1 / 0x2",
        "  regs[2]: 0x0 / 0x7",
        f"  log: from 0x3 on {bytes(range(3, 35)).hex(' ')} ... / "
        f"ff {bytes(range(4, 35)).hex(' ')} ...",
        "d#0: only in the first",
        "e#0: only in the second",
        "differ: 4 pages in 4 RAM blocks, 3 fields in 3 devices",
    ]
    found = json.loads(vmferry.call("diff", "--json", *paths).stdout)
    ranges = [[5 * PAGE, 8 * PAGE], [200 * PAGE, 201 * PAGE]]
    assert found.pop("blocks") == [
        {"block": "ram", "lengths": [256 * PAGE] * 2, "pages": 4, "first_ranges": ranges},
        {"block": "rom", "lengths": [8 * PAGE, 4 * PAGE]},
        {"block": "x", "lengths": [PAGE, None]},
        {"block": "y", "lengths": [None, PAGE]},
    ]
    nothing = {"instance_id": 0, "differing_fields": 0, "fields": []}
    assert found == {
        "equal": False,
        "absent": [],
        "behind": [None, None],
        "missing": [[], []],
        "differing_pages": 4,
        "differing_fields": 3,
        "devices": [
            {
                "device": "c",
                "instance_id": 1,
                "versions": [1, 1],
                "differing_fields": 3,
                "fields": [
                    {"path": "a", "type": "uint32", "a": 1, "b": 2},
                    {"path": "regs[2]", "type": "uint16", "a": 0, "b": 7},
                    {
                        "path": "log",
                        "type": "buffer",
                        "a": STATE[44:].hex(),
                        "b": changed[44:].hex(),
                    },
                ],
            },
            {"device": "d", "versions": [1, None], **nothing},
            {"device": "e", "versions": [None, 1], **nothing},
        ],
    }


def test_fields_of_one_stream_only(vmferry: Any) -> None:
    """Broken: a field that another version of QEMU added would be compared with another field."""
    short = [{**ENTRIES[0], "name": "b"}, *ENTRIES[1:]]
    paths = (
        vmferry.write("a", make({("c", 0): STATE})),
        vmferry.write("b", make({("c", 0): STATE}, entries=short)),
    )
    result = vmferry.call("diff", *paths)
    assert result.stdout.splitlines()[1:3] == [
        "  a: 0x1 (only in the first)",
        "  b: 0x1 (only in the second)",
    ]
    (device,) = json.loads(vmferry.call("diff", "--json", *paths).stdout)["devices"]
    assert device["fields"] == [
        {"path": "a", "type": "uint32", "a": 1},
        {"path": "b", "type": "uint32", "b": 1},
    ]


@pytest.mark.parametrize(
    "entries",
    [
        None,
        [{"name": "a", "type": "uint32", "size": 44}] * 2,
        [*ENTRIES, {"name": "end", "type": "uint32", "size": 4}],
    ],
)
def test_devices_without_a_sensible_description(
    entries: list[dict[str, Any]] | None, vmferry: Any
) -> None:
    """Broken: state that cannot be taken apart, in one stream or both, would not be compared."""
    one = vmferry.write("a", make({("c", 0): STATE + bytes(4)}, entries=None))
    same = vmferry.write("b", make({("c", 0): STATE + bytes(4)}, entries=entries))
    other = vmferry.write("c", make({("c", 0): STATE + b"end."}, entries=entries))
    assert vmferry.call("diff", one, same).exit_code == 0
    result = vmferry.call("diff", one, other)
    assert result.exit_code == 1
    assert "  payload: from 0x54 on 00 00 00 00 / 65 6e 64 2e\n" in result.stdout


def test_many_elements_are_one_field(vmferry: Any) -> None:
    """Broken: a large array would be listed number by number."""
    other = STATE[:4] + b"\0\1" * 20 + STATE[44:]
    paths = (
        vmferry.write("a", make({("c", 0): STATE})),
        vmferry.write("b", make({("c", 0): other})),
    )
    result = vmferry.call("diff", *paths)
    zeros, ones = ("0x0 " * 16).strip(), ("0x1 " * 16).strip()
    assert result.stdout.splitlines()[:2] == [
        "c#0: 1 field differs",
        f"  regs: {zeros} ... / {ones} ...",
    ]


def test_texts(vmferry: Any) -> None:
    """Broken: nobody would see that one guest ran and the other one did not."""
    entries = [
        {"name": "state", "type": "buffer", "size": 40},
        {"name": "mac", "type": "uint8", "size": 1, "array_len": 6},
        {"name": "name", "type": "uint8", "size": 1, "array_len": 9},
    ]
    mac = b"RT\0\x12\x34"
    states = [
        what.ljust(40, b"\0") + mac + last + name.ljust(9, b"\0")
        for what, last, name in ((b"running", b"V", b"disk-a"), (b"paused", b"W", b"disk-b"))
    ]
    paths = [
        vmferry.write(name, make({("c", 0): state}, entries=entries))
        for name, state in zip("ab", states, strict=True)
    ]
    assert vmferry.call("diff", *paths).stdout.splitlines()[1:4] == [
        "  state: 'running' / 'paused'",
        "  mac[5]: 0x56 / 0x57",
        "  name: 'disk-a' / 'disk-b'",
    ]
    shown = vmferry.call("dump", "--devices", "c#0", paths[0]).stdout
    assert "'running'" in shown
    assert "0x52 0x54 0x0 0x12 0x34 0x56" in shown


def test_versions(vmferry: Any) -> None:
    """Broken: a device that another version saved would count as the same."""
    data = make({("c", 0): STATE})
    header = b"\x01c\0\0\0\0\0\0\0\1"
    other = data.replace(header, header[:-1] + b"\3").replace(b'"version": 1', b'"version": 3')
    assert other != data
    result = vmferry.call("diff", vmferry.write("a", data), vmferry.write("b", other))
    assert result.exit_code == 1
    assert "c#0: 0 fields differ, version 1 in the first, 3 in the second\n" in result.stdout


def test_machines(vmferry: Any) -> None:
    """Broken: streams of two machine types would be called equal."""
    other = streams.SMALL.replace(b"pc-q35-7.2", b"pc-q35-8.0")
    result = vmferry.call("diff", vmferry.write("a", streams.SMALL), vmferry.write("b", other))
    assert result.exit_code == 1
    assert "configuration#0: 1 field differs\n" in result.stdout
    assert "'pc-q35-7.2' / 'pc-q35-8.0'\n" in result.stdout


@pytest.mark.parametrize("damaged", [0, 1])
def test_damage_is_told_of_the_right_stream(damaged: int, vmferry: Any) -> None:
    """Broken: a traceback, or the wrong one of two streams would be blamed."""
    data = [streams.SMALL, streams.SMALL]
    data[damaged] = data[damaged][:-100]
    paths = [vmferry.write(name, content) for name, content in zip("ab", data, strict=True)]
    result = vmferry.call("diff", *paths)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"vmferry: {paths[damaged]}: offset")


def test_ranges() -> None:
    """Broken: pages next to each other would be named one by one, or be lost between two steps."""
    pages = PageRanges(PAGE)
    mask = np.zeros(64, np.bool_)
    mask[[0, 1, 5, 62, 63]] = True
    pages.add(0, mask)
    pages.add(64 * PAGE, mask)
    assert pages.count == 10
    assert [(a // PAGE, b // PAGE) for a, b in pages.first] == [
        *[(0, 2), (5, 6), (62, 66), (69, 70), (126, 128)]
    ]
    pages.add(128 * PAGE, np.arange(64) % 2 == 0)
    assert pages.count == 42
    assert pages.describe().endswith("0x7e000-0x81000, 0x82000, 0x84000, 0x86000, ...")


def test_huge_ram() -> None:
    """Broken: a declared terabyte would be allocated, or compared page by page."""
    huge = events.RamBlock("pc.ram", 1 << 40)
    last = streams.page_run(0, [huge.length // PAGE - 1], 1, blocks=[huge])
    data = [
        make({}, blocks=(huge,), whole=False),
        make({}, blocks=(huge,), runs=(last,), whole=False),
    ]

    def compare() -> None:
        with ExitStack() as stack:
            guests = [rebuild(read_events(io.BytesIO(stream)), stack) for stream in data]
            (block,) = compare_guests(*guests).blocks
        assert block.pages is not None
        assert block.pages.first == [(huge.length - PAGE, huge.length)]

    assert peak_of(compare) < MEMORY
