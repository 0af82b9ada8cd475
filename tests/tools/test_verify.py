"""Test `vmferry verify`."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
from pathlib import Path
from subprocess import PIPE
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
from vmferry.protocol import events
from vmferry.protocol.errors import UnsupportedError
from vmferry.protocol.wire.marks import SectionType
from vmferry.tools.compare.verify import verify
from vmferry.tools.rebuild.arrivals import Arrivals
from vmferry.tools.sources.stream_events import How

from tests import streams
from tests.protocol.kinds import mapped
from tests.tools.test_containers import save_image

PAGE = 4096


@pytest.fixture
def stream(vmferry: Any) -> str:
    """Return the path of a whole stream."""
    return str(vmferry.write("stream", streams.WHOLE))


def test_valid(stream: str, vmferry: Any) -> None:
    """Broken: a whole stream would not be told from a damaged one."""
    result = vmferry.call("verify", stream)
    assert (result.exit_code, result.stdout) == (0, f"{stream}: valid\n")


def test_from_standard_input(vmferry: Any) -> None:
    """Broken: a stream could not be verified as it is unpacked."""
    result = vmferry.call("verify", "-", feed=streams.WHOLE)
    assert (result.exit_code, result.stdout) == (0, "-: valid\n")


def test_equal_ram(stream: str, vmferry: Any) -> None:
    """Broken: RAM that is right would be called wrong: pages sent twice, zeroed or filled."""
    files = [
        vmferry.write(f"ram={n}", bytes(image)) for n, image in enumerate(streams.RAM.values())
    ]
    pairs = [f"--ram={block}={file}" for block, file in zip(streams.RAM, files, strict=True)]
    result = vmferry.call("verify", stream, *pairs)
    assert (result.exit_code, result.stdout) == (0, f"{stream}: valid; RAM is equal\n")


def test_differing_pages_are_named(stream: str, vmferry: Any) -> None:
    """Broken: a lost page would pass, or nobody would know which one it is."""
    image = bytearray(streams.RAM["pc.ram"])
    differing = [1, 21, 50, 100, 255]
    for page in differing:
        image[page * PAGE + page] ^= 1
    file = vmferry.write("image", bytes(image))
    result = vmferry.call("verify", stream, f"--ram=pc.ram={file}")
    assert result.exit_code == 1
    where = ", ".join(f"{page * PAGE:#x}" for page in differing)
    assert result.stdout == f"pc.ram: 5 pages differ, at {where}\n"


def test_only_the_first_differing_pages(stream: str, vmferry: Any) -> None:
    """Broken: another guest's image would print a line as long as the guest is large."""
    image = bytes(byte ^ 0xFF for byte in streams.RAM["pc.ram"])
    result = vmferry.call("verify", stream, f"--ram=pc.ram={vmferry.write('image', image)}")
    assert result.exit_code == 1
    where = ", ".join(f"{page * PAGE:#x}" for page in range(8))
    assert result.stdout == f"pc.ram: 256 pages differ, at {where}, ...\n"


def test_json_keys_are_stable(stream: str, vmferry: Any) -> None:
    """Broken: every program that reads the answer would break."""
    image = bytearray(streams.RAM["pc.ram"])
    image[3 * PAGE] ^= 1
    file = vmferry.write("image", bytes(image))
    rom = vmferry.write("rom", bytes(streams.RAM["/rom@etc/acpi"]))
    result = vmferry.call(
        "verify", "--json", stream, f"--ram=pc.ram={file}", f"--ram=/rom@etc/acpi={rom}"
    )
    assert result.exit_code == 1
    differs = {"equal": False, "differing_pages": 1, "first_offsets": [3 * PAGE]}
    equal = {"equal": True, "differing_pages": 0, "first_offsets": []}
    assert json.loads(result.stdout) == {
        "valid": True,
        "error": None,
        "described": True,
        "unchecked": [],
        "unseen": [],
        "ram": [
            {"block": "pc.ram", "file": file, **differs},
            {"block": "/rom@etc/acpi", "file": rom, **equal},
        ],
        "against": None,
        "behind": None,
        "against_unseen": [],
    }


def test_json_of_a_damaged_stream(vmferry: Any) -> None:
    """Broken: a program could not tell where a stream is damaged."""
    damaged = bytearray(streams.SMALL)
    damaged[-200] = 0
    result = vmferry.call("verify", "--json", vmferry.write("stream", bytes(damaged)))
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["valid"], found["ram"]) == (False, [])
    assert set(found["error"]) == {"offset", "section", "message"}
    assert f"offset {found['error']['offset']:#x}" in result.stderr
    assert found["error"]["message"] in result.stderr


@pytest.mark.parametrize("change", [-PAGE, -1, 1, PAGE])
def test_file_of_another_length(change: int, stream: str, vmferry: Any) -> None:
    """Broken: the wrong file would be compared as far as it goes."""
    file = vmferry.write("image", bytes((1 << 20) + change))
    result = vmferry.call("verify", stream, f"--ram=pc.ram={file}")
    assert result.exit_code == 1
    assert f"{file} has {(1 << 20) + change} bytes, RAM block pc.ram has 1048576" in result.stderr


def test_unknown_block(stream: str, vmferry: Any) -> None:
    """Broken: a mistyped name would count as equal."""
    result = vmferry.call("verify", stream, f"--ram=ram={stream}")
    assert result.exit_code == 1
    assert "no RAM block 'ram' in the stream; it has pc.ram, /rom@etc/acpi" in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_file(stream: str, vmferry: Any) -> None:
    """Broken: a traceback, or the stream would be named for what the file lacks."""
    result = vmferry.call("verify", stream, f"--ram=pc.ram={vmferry.folder}/none")
    assert result.exit_code == 1
    assert result.stderr == f"vmferry: {vmferry.folder}/none: No such file or directory\n"


def test_pipe_instead_of_a_file(stream: str, vmferry: Any) -> None:
    """Broken: a file that cannot be read at any place would be a traceback."""
    result = vmferry.run("verify", stream, "--ram=pc.ram=/dev/stdin")
    assert result.status == 1
    assert "/dev/stdin has 0 bytes" in result.error


@pytest.mark.parametrize("pair", ["pc.ram", "pc.ram=", "=file", ""])
def test_half_a_pair(pair: str, stream: str, vmferry: Any) -> None:
    """Broken: wrong usage would look like a failed comparison."""
    result = vmferry.call("verify", stream, "--ram", pair)
    assert result.exit_code == 2
    assert "write BLOCK=FILE" in result.stderr


def test_block_twice(stream: str, vmferry: Any) -> None:
    """Broken: one of two files would be compared, and both believed equal."""
    result = vmferry.call("verify", stream, "--ram=pc.ram=a", "--ram=pc.ram=b")
    assert result.exit_code == 2
    assert "twice" in result.stderr


def test_sparse_ram(vmferry: Any, tmp_path: Path) -> None:
    """Broken: holes would be skipped where the other side has data."""
    block = events.RamBlock("pc.ram", 64 << 20)
    first, other = (streams.page_run(0, [number], blocks=[block]) for number in (1, 5000))
    path = vmferry.write("stream", streams.stream_with(first, other, blocks=[block]))
    file = tmp_path / "image"
    with file.open("wb") as image:
        image.truncate(block.length)
        image.seek(PAGE)
        image.write(streams.contents(first))
        image.seek(48 << 20)
        image.write(b"\1")
    result = vmferry.call("verify", path, f"--ram=pc.ram={file}")
    lines = result.stdout.splitlines()
    assert lines[-1] == f"pc.ram: 2 pages differ, at {5000 * PAGE:#x}, {48 << 20:#x}"


def test_wrong_xbzrle(vmferry: Any) -> None:
    """Broken: a stream that no destination can load would be called valid."""
    bad = streams.changes(0, {5: (0, b"abc"), 7: (3, b"")})
    data = streams.stream_with(bad)
    result = vmferry.call("verify", vmferry.write("stream", data))
    assert result.exit_code == 1
    offset = data.index(b"abc") + 3 + 11
    message = f"offset {offset:#x} (section 'ram'): XBZRLE: it ends within a run\n"
    assert result.stderr.endswith(message)


def test_compressed_pages(vmferry: Any) -> None:
    """Broken: RAM sent with the capability `compress` would be called wrong."""
    made = [
        *streams.opening(),
        *streams.ram_part(streams.page_run(0, range(256), 0)),
        *streams.ram_part(
            streams.page_run(1, range(8), 0),
            streams.page_run(0, range(8)),
            streams.zipped(0, {3: b"new", 7: b"", 200: b"far"}),
            streams.page_run(0, [200], 0),
            streams.zipped(1, {0: b"rom"}),
        ),
        *streams.closing(),
    ]
    pairs = [
        f"--ram={block}={vmferry.write(str(number), bytes(image))}"
        for number, (block, image) in enumerate(streams.ram_images(made).items())
    ]
    path = vmferry.write("stream", streams.to_bytes(made))
    result = vmferry.call("verify", path, *pairs)
    assert (result.exit_code, result.stdout) == (0, f"{path}: valid; RAM is equal\n")


def test_a_wrong_compressed_page(vmferry: Any) -> None:
    """Broken: a page that nobody can decompress would pass, where no RAM is compared."""
    run = streams.zipped(0, {3: b"new"})
    data = streams.stream_with(run)
    at = data.index(run.data.tobytes())
    damaged = data[: at + 9] + b"\xff" + data[at + 10 :]
    result = vmferry.call("verify", vmferry.write("stream", damaged))
    assert result.exit_code == 1
    assert f"offset {at:#x} (section 'ram'): COMPRESS_PAGE: not the zlib data" in result.stderr


def test_shared_ram(vmferry: Any) -> None:
    """Broken: RAM that stayed at the source would be compared as if it were all zero."""
    blocks = (
        events.RamBlock("shared", 4 * PAGE, address=0),
        events.RamBlock("vram", 4 * PAGE, address=0xE0000000),
    )
    zeros = streams.page_run(1, range(4), 0, blocks=blocks)
    run = streams.page_run(1, [0], blocks=blocks)
    head = events.Configuration(0, "pc-q35-7.2", PAGE, ("x-ignore-shared",))
    made = [events.Header(0), head, *streams.opening(blocks)[2:]]
    made += [*streams.ram_part(zeros, run), *streams.closing()]
    path = vmferry.write("stream", streams.to_bytes(made))
    good = vmferry.write("vram", streams.contents(run) + bytes(3 * PAGE))
    result = vmferry.call("verify", path, f"--ram=vram={good}")
    told = "RAM block shared is not in the stream: it is shared (x-ignore-shared)"
    lines = [f"{path}: valid; RAM is equal", f"not checked: {told}"]
    assert (result.exit_code, result.stdout.splitlines()[:2]) == (0, lines)
    result = vmferry.call("diff", path, path)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, f"not compared: {told}")
    result = vmferry.call("verify", path, f"--ram=shared={vmferry.write('ram', bytes(4 * PAGE))}")
    assert result.exit_code == 1
    assert result.stderr == (
        f"vmferry: {path}: RAM block shared is not in the stream: it is shared (x-ignore-shared)\n"
    )


def test_page_size_of_the_reader(vmferry: Any) -> None:
    """Broken: a stream that tells its page size only at its end could not be read at all."""
    block = events.RamBlock("ram", 8192)
    run = streams.page_run(0, [0], blocks=[block], page_size=8192)
    ram = [*streams.ram_start([block]), *streams.ram_piece(SectionType.END, run)]
    data = streams.to_bytes([events.Header(0), *ram, events.EndOfStream(0)])
    image = vmferry.write("image", streams.contents(run))
    path = vmferry.write("stream", data)
    assert verify(io.BytesIO(data), {"ram": image}, how=How(8192)).ram[0].equal
    result = vmferry.call("verify", path)
    assert result.exit_code == 1
    assert "if pages have 4096 bytes: the stream does not say" in result.stderr


@pytest.mark.parametrize("size", [256, 1024, 2048, 8192, 65536])
def test_page_size_of_the_description(size: int, vmferry: Any) -> None:
    """Broken: streams of 160 of QEMU's 199 Arm machines, and all of AVR, would be refused."""
    block = events.RamBlock("ram", 400 * size)
    run = streams.page_run(0, range(100), blocks=[block], page_size=size)
    rest = streams.page_run(0, range(100, 400), 0, blocks=[block], page_size=size)
    ram = [*streams.ram_start([block]), *streams.ram_piece(SectionType.END, run, rest)]
    told = streams.description([], page_size=size)
    data = streams.to_bytes([events.Header(0), *ram, events.EndOfStream(0), told])
    image = vmferry.write("image", streams.contents(run) + bytes(300 * size))
    for name, content in (
        ("plain", data),
        ("tail", data + bytes(70000)),
        ("saved", save_image(data)),
    ):
        result = vmferry.call("verify", vmferry.write(name, content), f"--ram=ram={image}")
        assert result.exit_code == 0, result.output
    told = json.loads(vmferry.call("dump", "--json", vmferry.write("plain", data)).stdout)
    assert told["page_size"] == size
    packed = vmferry.write("packed", gzip.compress(data))
    result = vmferry.call("verify", packed)
    assert result.exit_code == 1
    assert "--page-size" in result.stderr
    assert vmferry.call("verify", packed, f"--page-size={size}").exit_code == 0


def test_mapped_ram(vmferry: Any) -> None:
    """Broken: RAM in a mapped-ram file would be called wrong, or not looked at."""
    data, ram = mapped({"pc.ram": [0, 1, 2, 300, 699], "rom": [7]})
    path = vmferry.write("stream", data)
    pairs = [f"--ram={block}={vmferry.write(block, image)}" for block, image in ram.items()]
    result = vmferry.call("verify", path, *pairs)
    assert (result.exit_code, result.stdout) == (0, f"{path}: valid; RAM is equal\n")
    at = data.index(ram["rom"][7 * PAGE : 8 * PAGE])
    wrong = vmferry.write("wrong", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    result = vmferry.call("verify", wrong, *pairs)
    assert (result.exit_code, result.stdout) == (1, "rom: 1 page differs, at 0x7000\n")
    result = vmferry.call("verify", vmferry.write("cut", data[: at + 9]), *pairs)
    assert result.exit_code == 1
    assert "a page of block rom lies past the end of the file" in result.stderr


def test_mapped_ram_from_a_pipe(vmferry: Any) -> None:
    """Broken: a file that must be read at any place would be misread from a pipe, where nobody
    made a temporary copy."""
    result = vmferry.run("verify", "/dev/stdin", feed=mapped({"ram": [1]})[0])
    assert (result.status, result.out) == (0, "/dev/stdin: valid\n")
    with subprocess.Popen(["cat", "in"], cwd=vmferry.folder / "standard", stdout=PIPE) as cat:
        assert cat.stdout is not None
        with pytest.raises(UnsupportedError, match="is read from a file, not from a pipe"):
            verify(cast(BinaryIO, cat.stdout), {})


def test_pages_that_never_come(vmferry: Any) -> None:
    """Broken: a stream that lost pages would be called whole."""
    path = vmferry.write("stream", streams.SMALL)
    result = vmferry.call("verify", path)
    assert result.exit_code == 1
    # 20 to 39, but 21, 22 and 30; 42 to 59; 61 to 99; 250 to 255.
    where = "0x14000, 0x17000-0x1e000, 0x1f000-0x28000, 0x2a000-0x3c000, 0x3d000-0x64000, "
    assert result.stdout.splitlines() == [
        f"pc.ram: 80 of 256 pages never arrived, first at {where}0xfa000-0x100000",
        "/rom@etc/acpi: 6 of 8 pages never arrived, first at 0x0, 0x2000, 0x4000-0x8000",
    ]
    found = json.loads(vmferry.call("verify", "--json", path).stdout)
    assert found["valid"] is True
    assert found["unseen"][1] == {
        "block": "/rom@etc/acpi",
        "total": 8,
        "pages": 6,
        "first_ranges": [[0, PAGE], [2 * PAGE, 3 * PAGE], [4 * PAGE, 8 * PAGE]],
    }


def test_pages_of_a_large_block_that_never_come() -> None:
    """Broken: beyond some GiB, the wrong pages would be named, or all be looked at one by one."""
    ram, rom = events.RamBlock("ram", (3 << 19) * PAGE), events.RamBlock("rom", PAGE)
    arrivals = Arrivals()
    arrivals.take(streams.listed((ram, rom)))
    lacking = [7, 1 << 19, (1 << 20) - 1, 1 << 20]
    numbers = np.delete(np.arange(3 << 19), lacking)
    for some in np.array_split(numbers, 3):
        arrivals.take(streams.page_run(0, some.tolist(), 0, blocks=(ram, rom)))
    arrivals.take(streams.page_run(1, [0], 0, blocks=(ram, rom)))
    (found,) = arrivals.missing()
    assert (found.block, found.total, found.ranges.count) == ("ram", (3 << 19), 4)
    assert [(a // PAGE, b // PAGE) for a, b in found.ranges.first] == [
        (7, 8),
        (1 << 19, (1 << 19) + 1),
        ((1 << 20) - 1, (1 << 20) + 1),
    ]


def test_against_another_stream(stream: str, vmferry: Any) -> None:
    """Broken: two streams of one guest would be called different, or those of two guests equal."""
    twice = [*streams.opening(), *streams.zeros(), *streams.zeros()]
    twice += streams.EVENTS[len(streams.opening()) :]
    again = vmferry.write("again", streams.to_bytes(twice))
    result = vmferry.call("verify", stream, "--against", again)
    assert (result.exit_code, result.stdout) == (0, f"{stream}: valid; RAM is equal\n")
    more = streams.ram_part(streams.page_run(0, [7, 8, 9, 50], 0x11))
    other = [*twice[: -len(streams.closing())], *more, *streams.closing()]
    result = vmferry.call(
        "verify", stream, "--against", vmferry.write("b", streams.to_bytes(other))
    )
    assert result.exit_code == 1
    assert result.stdout == "pc.ram: 4 pages differ, at 0x7000-0xa000, 0x32000\n"


def test_the_other_stream_is_damaged(stream: str, vmferry: Any) -> None:
    """Broken: the wrong one of two streams would be blamed."""
    other = vmferry.write("other", streams.SMALL[:-100])
    result = vmferry.call("verify", stream, "--against", other)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"vmferry: {other}: offset")


def test_description_against_bytes(vmferry: Any) -> None:
    """Broken: device state that is not what its description says would be called valid."""
    early, cpu, *others = streams.DESCRIPTION.json["devices"]
    inner = {"vmsd_name": "s", "version": 1, "fields": [{"name": "a", "type": "uint8", "size": 1}]}
    struct = {"name": "regs", "type": "struct", "size": 512, "array_len": 2, "struct": inner}
    value = {"devices": [early, {**cpu, "fields": [struct]}, *others]}
    made = [*streams.EVENTS[:-1], streams.description_of(value)]
    result = vmferry.call("verify", vmferry.write("stream", streams.to_bytes(made)))
    assert result.exit_code == 1
    message = "(section 'cpu'): its description makes no sense: regs: struct of 1 bytes, its size"
    assert message in result.stderr


def test_without_description(vmferry: Any) -> None:
    """Broken: nobody would learn that the devices of such a stream cannot be checked."""
    data = streams.WHOLE[: -5 - len(streams.DESCRIPTION.text)]
    result_path = vmferry.write("stream", data)
    result = vmferry.call("verify", result_path)
    assert result.exit_code == 0
    told = "not checked: devices: the stream has no description of them"
    assert result.stdout.splitlines()[1:] == [told]
    listed = json.loads(vmferry.call("verify", "--json", result_path).stdout)
    assert listed["unchecked"] == [told.removeprefix("not checked: ")]


@pytest.mark.parametrize("command", [("verify",), ("extract", "--all", "-o", "{}/out")])
def test_ram_beyond_all_memory(vmferry: Any, command: tuple[str, ...]) -> None:
    """Broken: a hundred bytes that tell of 64 TiB in the smallest pages would be a traceback."""
    block, small = events.RamBlock("pc.ram", (1 << 46) - 256), 256
    head = [*streams.ram_start([block], small), *streams.ram_piece(SectionType.END)]
    made = [events.Header(0), events.Configuration(0, "pc", small), *head]
    path = vmferry.write("huge", streams.to_bytes(made))
    words = [word.format(vmferry.folder) for word in command]
    ran = vmferry.run(words[0], path, *words[1:])
    assert ran.status == 1
    assert "Traceback" not in ran.err
