"""Every kind of stream through every tool that reads streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.wire.marks import SectionType

from tests.protocol.kinds import KINDS, mapped
from tests.streams import (
    closing,
    contents,
    listed,
    opening,
    page_run,
    ram_piece,
    ram_start,
    to_bytes,
    zeros,
)
from tests.tools.test_containers import save_image

PAGE = 4096
STREAMS = {kind: to_bytes(made) for kind, made in KINDS.items()}
STREAMS["mapped-ram"] = mapped({"pc.ram": [1, 5], "rom": []})[0]
SPARSE = 6
"""The number of that format of libvirt images."""


@pytest.mark.parametrize("kind", STREAMS)
def test_each_tool_reads_it(kind: str, vmferry: Any) -> None:
    """Broken: a stream that one tool reads would be refused by another."""
    path = vmferry.write("stream", STREAMS[kind])
    assert vmferry.call("dump", path).exit_code == 0
    assert json.loads(vmferry.call("verify", "--json", path).stdout)["valid"]
    result = vmferry.call("diff", path, path)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "equal: RAM and devices")
    out = vmferry.folder / "blocks"
    found = vmferry.call("extract", path, "--all", "-o", str(out), "--json")
    assert found.exit_code == 0
    for block in json.loads(found.stdout)["blocks"]:
        pair = f"--ram={block['block']}={block['file']}"
        compared = json.loads(vmferry.call("verify", "--json", path, pair).stdout)
        assert compared["ram"][0]["equal"]


def test_what_cannot_be_checked_is_told(vmferry: Any) -> None:
    """Broken: a person would take for checked what nobody looked into."""

    def told_of(data: bytes) -> list[str]:
        path = vmferry.write("stream", data)
        found: list[str] = json.loads(vmferry.call("verify", "--json", path).stdout)["unchecked"]
        return found

    def told(kind: str) -> list[str]:
        return told_of(STREAMS[kind])

    shared = "RAM block {} is not in the stream: it is shared (x-ignore-shared)"
    assert told("opaque")[0] == "section vfio: nobody knows what is in it"
    assert told("nothing-told")[0].endswith("bytes of devices: nothing separates them")
    assert told("shared") == [shared.format("ram"), shared.format("rom")]
    assert told("block") == []
    bare = to_bytes([*opening(), *zeros(), *closing(early=())])
    assert told_of(bare) == ["devices that the description leaves out: early#0"]


def test_a_shared_block_is_not_extracted(vmferry: Any) -> None:
    """Broken: zeros would be given out for memory that is elsewhere."""
    path = vmferry.write("stream", STREAMS["shared"])
    out = vmferry.folder / "out"
    ran = vmferry.run("extract", path, "-o", str(out), "--block", "ram")
    assert ran.error == (
        f"{path}: RAM block ram is not in the stream: it is shared (x-ignore-shared)"
    )
    assert not out.exists()
    result = vmferry.call("extract", path, "--all", "-o", str(out), "--json")
    found = json.loads(result.stdout)
    assert (found["blocks"], found["absent"]) == ([], ["ram", "rom"])
    assert not list(out.iterdir())


def test_a_block_that_a_mapped_ram_file_lacks(vmferry: Any) -> None:
    """Broken: shared memory, which such a file leaves out, would be shown as zeros."""
    data, images = mapped({"rom": [7]}, shared="pc.ram")
    path, out = vmferry.write("stream", data), vmferry.folder / "out"
    told = "RAM block pc.ram is not in the stream: it is shared (x-ignore-shared)"
    listed = json.loads(vmferry.call("dump", "--json", path).stdout)["blocks"]
    assert [block["absent"] for block in listed] == [True, False]
    assert f"{told}\n" in vmferry.call("verify", path).stdout
    assert vmferry.run("verify", path, f"--ram=pc.ram={path}").error == f"{path}: {told}"
    assert vmferry.run("extract", path, "-o", str(out)).error == f"{path}: {told}"
    assert f"not compared: {told}\n" in vmferry.call("diff", path, path).stdout
    result = vmferry.call("extract", path, "--all", "-o", str(out))
    assert result.stdout.splitlines()[-1] == told
    assert [file.read_bytes() for file in out.iterdir()] == [images["rom"]]
    for container in ("plain", "mapped-ram"):
        again = str(vmferry.folder / container)
        assert vmferry.call("convert", path, again, "--to", container).exit_code == 0
        assert f"{told}\n" in vmferry.call("verify", again).stdout


def test_an_address_in_the_stream(vmferry: Any) -> None:
    """Broken: memory of a machine that nobody knows would have no address, or a wrong one."""
    block = events.RamBlock("ram", 4 * PAGE, address=0x8000_0000)
    run = page_run(0, [0], blocks=[block])
    made: list[events.Event] = [
        events.Header(0),
        events.Configuration(0, "strange-1.0", PAGE, ("x-ignore-shared",)),
        *ram_piece(SectionType.START, listed([block]), run),
        *closing([])[:-1],
    ]
    arguments = (
        "--format",
        "lime",
        "--arch",
        "x86_64",
        "-o",
        str(vmferry.folder / "lime"),
        "--json",
    )
    result = vmferry.call("extract", vmferry.write("stream", to_bytes(made)), *arguments)
    assert result.stdout, result.stderr
    regions = json.loads(result.stdout)["blocks"][0]["regions"]
    assert regions == [{"start": 0, "length": 4 * PAGE, "address": 0x8000_0000}]


def test_disks(vmferry: Any) -> None:
    """Broken: disks of a block migration would be lost, or their blocks misplaced."""
    path = vmferry.write("stream", STREAMS["block"])
    out = vmferry.folder / "disks"
    result = vmferry.call("extract", path, "--disks", str(out), "--json")
    found = json.loads(result.stdout)["disks"]
    assert [(disk["device"], disk["size"]) for disk in found] == [
        ("disk0", 2 << 20),
        ("disk1", 1 << 20),
    ]
    first, second = (Path(disk["file"]).read_bytes() for disk in found)
    assert first == bytes(1 << 20) + bytes(range(256)) * (1 << 12)
    assert second == bytes(1 << 20)
    again = vmferry.run("extract", vmferry.write("other", STREAMS["pages"]), "--disks", str(out))
    assert "exists already" in again.error


def test_disks_without_names(vmferry: Any) -> None:
    """Broken: such a stream would be unreadable, or blocks of several disks be mixed in one."""
    made = STREAMS["block"].replace(b"\x05disk0", b"\0").replace(b"\x05disk1", b"\0")
    path, out = vmferry.write("stream", made), vmferry.folder / "disks"
    assert vmferry.call("dump", path).exit_code == 0
    assert "a disk without a name" in vmferry.run("extract", path, "--disks", str(out)).error
    assert not out.exists()


def test_a_block_that_becomes_zero_again(vmferry: Any) -> None:
    """Broken: a disk would keep what the guest wrote over."""
    data = STREAMS["block"]
    at = data.index(b"\x05disk1") - 8
    # The zero block is of the same disk and place as the one before it.
    zero = (2048 << 9 | 0x09).to_bytes(8, "big") + b"\x05disk0"
    made = data[:at] + zero + data[at + 14 :]
    out = vmferry.folder / "disks"
    result = vmferry.call("extract", vmferry.write("stream", made), "--disks", str(out), "--json")
    assert result.exit_code == 0, result.output
    (disk,) = json.loads(result.stdout)["disks"]
    assert Path(disk["file"]).read_bytes() == bytes(2 << 20)


def test_no_disks(vmferry: Any) -> None:
    """Broken: an empty folder would look like a guest whose disks are there."""
    out = vmferry.folder / "disks"
    ran = vmferry.run("extract", vmferry.write("stream", STREAMS["pages"]), "--disks", str(out))
    assert ran.error.endswith("the stream has no disks")
    assert not out.exists()


def test_page_size(vmferry: Any) -> None:
    """Broken: a stream that does not say how large its pages are could not be read by a tool."""
    block = events.RamBlock("ram", 65536)
    run = page_run(0, [0], blocks=[block], page_size=65536)
    ram = [*ram_start([block]), *ram_piece(SectionType.END, run)]
    path = vmferry.write("stream", to_bytes([events.Header(0), *ram, events.EndOfStream(0)]))
    out = vmferry.folder / "ram"
    size = ("--page-size", "64K")
    assert json.loads(vmferry.call("dump", "--json", path, *size).stdout)["page_size"] == 65536
    assert vmferry.call("verify", path, *size).exit_code == 0
    assert vmferry.call("diff", path, path, *size).exit_code == 0
    assert vmferry.call("extract", path, "-o", str(out), *size).exit_code == 0
    assert out.read_bytes() == contents(run)
    for wrong in ("5000", "128K", "0"):
        assert vmferry.call("dump", path, "--page-size", wrong).exit_code == 2


def test_sparse_images_of_libvirt(vmferry: Any) -> None:
    """Broken: pages of a mapped-ram file behind libvirt's header would be looked for elsewhere."""
    start = len(save_image(b""))
    data, ram = mapped({"pc.ram": [0, 1, 300], "rom": [7]}, file_offset=start)
    path = vmferry.write("image", save_image(data, format=SPARSE))
    pairs = [f"--ram={block}={vmferry.write(block, image)}" for block, image in ram.items()]
    result = vmferry.call("verify", path, *pairs)
    assert (result.exit_code, result.stdout) == (0, f"{path}: valid; RAM is equal\n")
    out = vmferry.folder / "out"
    assert vmferry.call("extract", path, "-o", str(out)).exit_code == 0
    assert out.read_bytes() == ram["pc.ram"]
    assert vmferry.call("dump", path).exit_code == 0
