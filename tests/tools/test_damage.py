"""Damaged streams: each is refused in one line or read, soon, and in little memory.

Everything is seeded: variant N of a stream is the same on every machine.
"""

from __future__ import annotations

import io
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError
from vmferry.protocol.reader import StreamReader
from vmferry.sender.coordinator import Sender
from vmferry.tools.compare.verify import Comparison, verify
from vmferry.tools.dump.pieces import summarise
from vmferry.tools.rebuild.guest import RebuildError

from tests import streams
from tests.protocol.kinds import KINDS, mapped
from tests.tools.running import run_process

SECONDS = 5.0
"""Limit in seconds for one variant in this process, some hundred times what it takes."""
MEMORY = 96 << 10
"""KiB that a damaged stream may cost beyond what the whole one does."""


@dataclass(frozen=True)
class Field:
    """A length, count or address on the wire: big-endian, `size` bytes at `offset`."""

    offset: int
    size: int


def fields_of(stream: bytes) -> list[Field]:
    """Return the fields of a whole stream that could lie about what follows them."""
    reader = StreamReader()
    found = [field for event in reader.feed(stream) for field in _fields_of_event(event)]
    reader.close()
    return found


def _fields_of_event(event: events.Event) -> list[Field]:
    """Return each field of an event as (distance from the event's offset, size)."""
    places: list[tuple[int, int]] = []
    if isinstance(event, events.Configuration):
        # The machine's name; behind it the first subsection's name.
        places = [(1, 4), (6 + len(event.machine), 1)]
    elif isinstance(event, events.RamBlocks):
        places = [(0, 8), *_places_in_blocks(event)]
    elif isinstance(event, events.PageRun):
        places = [(0, 8)] if event.continued else [(0, 8), (8, 1)]
    elif isinstance(event, events.DeviceSection):
        places = [(1, 4), (5, 1), (event.payload_offset - 8 - event.offset, 4)]
    elif isinstance(event, (events.IterativeSection, events.Footer, events.Description)):
        places = [(1, 4)]
    elif isinstance(event, events.Command):
        places = [(1, 2), (3, 2)]
    elif not isinstance(event, (events.NoFooters, events.UnsplitDevices)):
        places = [(0, 8), (8, 1)]
    return [Field(event.offset + place, size) for place, size in places]


def _places_in_blocks(event: events.RamBlocks) -> list[tuple[int, int]]:
    places, at = [], 8
    for block in event.blocks:
        name = len(block.name.encode())
        places += [(at, 1), (at + 1 + name, 8)]
        at += 9 + name + (0 if block.page_size is None else 8)
    return places


class Damage:
    """Damaged variants of one stream, by number."""

    def __init__(self, stream: bytes, fields: list[Field] | None = None) -> None:
        self._stream = stream
        self._fields = fields_of(stream) if fields is None else fields
        self._kinds: list[Callable[[random.Random, bytearray], None]] = [
            self._truncate,
            self._flip_bits,
            self._overwrite,
            self._lie,
            self._lie,
            self._move,
        ]

    def variant(self, number: int) -> bytes:
        """Return variant `number`; most are damaged once, some twice or thrice."""
        chance = random.Random(number)
        data = bytearray(self._stream)
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            chance.choice(self._kinds)(chance, data)
        return bytes(data)

    def _place(self, chance: random.Random, data: bytearray) -> int:
        """Choose a place anywhere or near a field: most bytes are pages, which may be anything."""
        at = chance.randrange(max(1, len(data)))
        if chance.random() < 0.6:
            at = chance.choice(self._fields).offset + chance.randint(-8, 24)
        return min(max(at, 0), max(0, len(data) - 1))

    def _truncate(self, chance: random.Random, data: bytearray) -> None:
        del data[self._place(chance, data) :]

    def _flip_bits(self, chance: random.Random, data: bytearray) -> None:
        for _ in range(chance.choice([1, 1, 2, 8])):
            if data:
                data[self._place(chance, data)] ^= 1 << chance.randrange(8)

    def _overwrite(self, chance: random.Random, data: bytearray) -> None:
        at, count = self._place(chance, data), chance.choice([1, 1, 4, 8, 64])
        fills = [chance.randbytes(count), bytes(count), b"\xff" * count]
        data[at : at + count] = chance.choice(fills)[: max(0, len(data) - at)]

    def _lie(self, chance: random.Random, data: bytearray) -> None:
        field = chance.choice(self._fields)
        end = field.offset + field.size
        true, top = int.from_bytes(data[field.offset : end], "big"), 1 << 8 * field.size
        lies = [0, 1, true - 1, true + 1, true * 2, true ^ 1 << chance.randrange(8 * field.size)]
        lies += [top - 1, top >> 1, top - 4096, chance.randrange(top), 1 << 40, true + (1 << 40)]
        if end <= len(data):
            data[field.offset : end] = (chance.choice(lies) % top).to_bytes(field.size, "big")

    def _move(self, chance: random.Random, data: bytearray) -> None:
        """Lose, repeat or move a piece."""
        start, count = self._place(chance, data), chance.choice([1, 8, 9, 100, 4104])
        piece = data[start : start + count]
        if chance.random() < 0.7:
            del data[start : start + count]
        if chance.random() < 0.7:
            at = self._place(chance, data)
            data[at:at] = piece


def outcome(read: Callable[[], Any], seconds: float = SECONDS) -> str:
    """Return `accepted` or the kind of the error; anything but a refusal in one line fails."""
    # Of the processor: other programs may keep it for long.
    started = time.process_time()
    line, result = "", "accepted"
    try:
        read()
    except (StreamError, RebuildError) as error:
        line, result = str(error), type(error).__name__
    assert not line or line.isprintable(), line
    # A name has at most 255 bytes, of up to four characters each.
    assert len(line) < 1200, line
    assert time.process_time() - started < seconds
    return result


def read_outcome(data: bytes, files: dict[str, str]) -> str:
    """Return the outcome of `verify`; `dump` has to agree, but for files that do not fit."""
    shown = outcome(lambda: summarise(io.BytesIO(data)))
    checked = outcome(lambda: verify(io.BytesIO(data), files))
    if (shown, checked) == ("accepted", "StreamError"):
        # Only `verify` takes devices apart by what describes them.
        with pytest.raises(StreamError, match=r"description makes no sense|not as described"):
            verify(io.BytesIO(data), files)
        return checked
    # A block that a lie renamed or resized cannot be compared with its file.
    assert checked == shown or (files and checked == "RebuildError")
    return checked


def peak_of(work: Callable[[], None]) -> int:
    """Return by how many KiB `work` raised the peak memory of this process."""
    before = _memory("VmRSS:")
    # 5: begin to measure the peak anew (man 5 proc).
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return _memory("VmHWM:") - before


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise AssertionError(name)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a stream from the real sender: what `vmferry send` wrote."""
    path = tmp_path_factory.mktemp("sent") / "stream"
    source = SyntheticGuest.parse("1M,zero=80%")
    try:
        Sender(source, f"file:{path}").run()
    finally:
        source.close()
    return path.read_bytes()


def images(folder: Path, ram: Mapping[str, bytes]) -> dict[str, str]:
    """Return the files of these blocks."""
    files = {}
    for number, (block, image) in enumerate(ram.items()):
        path = folder / str(number)
        path.write_bytes(image)
        files[block] = str(path)
    return files


def read_damaged(stream: bytes, numbers: range, files: dict[str, str]) -> Counter[str]:
    """Return the outcomes of these variants."""
    damage = Damage(stream)
    return Counter(read_outcome(damage.variant(number), files) for number in numbers)


def test_damaged_streams_are_refused_or_read(tmp_path: Path) -> None:
    """Broken: a damaged stream would be a traceback, take for ever, or take all memory."""
    files = images(tmp_path, streams.RAM)
    outcomes: Counter[str] = Counter()
    used = peak_of(lambda: outcomes.update(read_damaged(streams.SMALL, range(300), files)))
    assert used < MEMORY
    # Damage that is never noticed, or always, would show nothing.
    assert outcomes["StreamError"] > 150
    assert outcomes["accepted"] > 20


def test_damaged_mapped_ram() -> None:
    """Broken: as above, for a file in which pages have places of their own."""
    data, _ = mapped({"ram": [1, 5], "rom": [2]}, count=70)
    end = data.index(b"mapped-ram") + 100
    outcomes: Counter[str] = Counter()

    def read(number: int) -> str:
        # Most of the file is room for pages: only what tells about them is damaged.
        head = Damage(data, [Field(at, 8) for at in range(0, end, 4)]).variant(number)
        return read_outcome(head[:end] + data[end:] if number % 3 else head, {})

    used = peak_of(lambda: outcomes.update(map(read, range(60))))
    assert used < MEMORY
    assert outcomes["StreamError"] + outcomes["UnsupportedError"] > 15


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_streams_of_each_kind(kind: str) -> None:
    """Broken: as above, for streams that hold more than plain and zero pages."""
    outcomes: Counter[str] = Counter()
    damage = Damage(streams.to_bytes(KINDS[kind]))

    def read(data: bytes) -> str:
        # What pages encode is looked at only where RAM is built.
        if outcome(lambda: summarise(io.BytesIO(data))) == "accepted" and kind == "pages":
            return outcome(lambda: verify(io.BytesIO(data), {}))
        return read_outcome(data, {})

    numbers = range(60)
    used = peak_of(lambda: outcomes.update(read(damage.variant(number)) for number in numbers))
    assert used < MEMORY
    assert outcomes["StreamError"] + outcomes["UnsupportedError"] > 20


def test_damaged_output_of_the_sender(sent: bytes) -> None:
    """Broken: as above, for streams as our own sender lays them out."""
    outcomes: Counter[str] = Counter()
    used = peak_of(lambda: outcomes.update(read_damaged(sent, range(200), {})))
    assert used < MEMORY
    assert outcomes["StreamError"] > 80


def test_truncated_anywhere_near_the_end() -> None:
    """Broken: a stream that lost its end would pass for a whole guest."""
    whole = streams.SMALL
    described = whole.rindex(b"\x00\x06")
    for end in range(described - 40, len(whole)):
        expected = "accepted" if end == described + 1 else "StreamError"
        assert read_outcome(whole[:end], {}) == expected, end


@pytest.mark.parametrize("number", range(20))
def test_verify_command(number: int, vmferry: Any) -> None:
    """Broken: what the reader refuses would reach the user as something else than one line."""
    path = vmferry.write("stream", Damage(streams.WHOLE).variant(1000 + number))
    images(vmferry.folder, streams.RAM)
    ran = vmferry.run("verify", path, f"--ram=pc.ram={vmferry.folder}/0")
    assert ran.status in (0, 1)
    if ran.status == 0:
        assert ran.err == ""
    elif not ran.out:
        assert ran.error.startswith(f"{path}: ") or str(vmferry.folder / "0") in ran.error
    else:
        assert "differ" in ran.out or "never arrived" in ran.out
        assert ran.err == ""


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return how many KiB of memory receiving the whole stream takes."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / "stream").write_bytes(streams.SMALL)
    ran = run_process(
        "receive", f"file:{folder}/stream", "--guest", f"dir:{folder}/guest", folder=folder
    )
    assert ran.status == 0, ran.err
    return int(ran.rss)


def receive(vmferry: Any, stream: bytes, *options: str) -> Any:
    """Receive from a file: either there is a whole guest afterwards, or nothing and one line."""
    path = vmferry.write("stream", stream)
    guest = vmferry.folder / "guest"
    ran = vmferry.run("receive", f"file:{path}", "--guest", f"dir:{guest}", *options)
    if ran.status == 0:
        assert (guest / "guest.json").exists()
    else:
        assert ran.status == 1
        # An exception in one of the processes is told in one line, too, but is a bug.
        assert "process vmferry-" not in ran.error
        assert not guest.exists()
    return ran


@pytest.mark.parametrize("number", range(10))
def test_receive_command(number: int, vmferry: Any, usual: int) -> None:
    """Broken: a damaged stream would leave half a guest, processes, or a traceback behind."""
    data = Damage(streams.SMALL).variant(2000 + number)
    ran = receive(vmferry, data)
    assert ran.rss < usual + MEMORY
    whole = read_outcome(data, {}) == "accepted"
    assert (ran.status == 0) == whole


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("workers", [0, 2])
def test_receive_of_damaged_frames(number: int, workers: int, vmferry: Any, usual: int) -> None:
    """Broken: damage to a compressed stream would be a traceback, or go unnoticed."""
    chance = random.Random(number)
    pieces = [streams.SMALL[start : start + 9000] for start in range(0, len(streams.SMALL), 9000)]
    checked = zstandard.ZstdCompressor(write_checksum=True)
    data = bytearray(b"".join(checked.compress(piece) for piece in pieces))
    place = chance.randrange(len(data))
    if number % 3:
        data[place] ^= 1 << chance.randrange(8)
    else:
        del data[place:]
    ran = receive(vmferry, bytes(data), "--workers", str(workers))
    assert ran.status == 1
    assert ran.rss < usual + MEMORY


@pytest.mark.parametrize(
    ("opening", "error"),
    [
        (1, "the stream brought no RAM"),
        (None, "offset {place:#x}: the stream ends"),
    ],
)
def test_receive_of_a_bomb(opening: int | None, error: str, vmferry: Any, usual: int) -> None:
    """Broken: a few kilobytes would take all memory, or all time, before they are refused."""
    head = streams.to_bytes(streams.opening()[:opening])
    made = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(1 << 20)
    data = made.compress(head) + b"".join(made.compress(zeros) for _ in range(512)) + made.flush()
    ran = receive(vmferry, data)
    # A zero is the end of a stream.
    assert ran.error.startswith(error.format(place=len(head)))
    assert ran.rss < usual + MEMORY


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_receive_of_frames(workers: int, vmferry: Any) -> None:
    """Broken: what `zstd` made of a stream would not be received, or build other RAM."""
    made = zstandard.ZstdCompressor()
    half = len(streams.SMALL) // 2
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    stream = made.compressobj()
    data = skipped + made.compress(streams.SMALL[:half]) + skipped
    data += stream.compress(streams.SMALL[half:]) + stream.flush()
    assert receive(vmferry, data, "--workers", str(workers)).status == 0
    for number, image in enumerate(streams.RAM.values()):
        (path,) = (vmferry.folder / "guest" / "ram").glob(f"{number:03}-*")
        assert path.read_bytes() == image


# Lies that chance would hardly find.


def declaring(*blocks: events.RamBlock, touched: bool = False) -> bytes:
    """Return a whole stream of these blocks; `touched`: with many zero pages, and the last page of
    the first block.
    """
    if not touched:
        return streams.to_bytes([*streams.opening(blocks), *streams.closing()])
    zeros = streams.page_run(0, range((256 << 20) // streams.PAGE), 0, blocks=blocks)
    last = streams.page_run(0, [blocks[0].length // streams.PAGE - 1], blocks=blocks)
    return streams.stream_with(zeros, last, blocks=blocks)


def test_verify_of_huge_ram(tmp_path: Path) -> None:
    """Broken: a declared terabyte would be allocated, zeroed or read page by page."""
    huge = events.RamBlock("pc.ram", 1 << 40)
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(huge.length)
        file.seek(5 * streams.PAGE)
        file.write(b"\1")
    found: list[Comparison] = []
    stream = io.BytesIO(declaring(huge, touched=True))
    used = peak_of(lambda: found.extend(verify(stream, {"pc.ram": str(path)}).ram))
    assert used < MEMORY
    last = huge.length - streams.PAGE
    assert found == [Comparison("pc.ram", str(path), 2, (5 * streams.PAGE, last))]


def test_blocks_of_half_pages(tmp_path: Path) -> None:
    """Broken: RAM that is no whole number of pages would be a traceback, here or at a receiver."""
    blocks = [events.RamBlock(name, streams.PAGE // 2) for name in ("a", "b")]
    files = images(tmp_path, {"a": bytes(streams.PAGE // 2)})
    assert read_outcome(declaring(*blocks), files) == "StreamError"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_receive_of_wrong_xbzrle(workers: int, vmferry: Any) -> None:
    """Broken: a difference that is none would be applied, or end in a traceback (law 6)."""
    bad = streams.changes(0, {5: (0, b"abc"), 7: (3, b"")})
    data = streams.stream_with(bad)
    source, folder = vmferry.write("stream", data), vmferry.folder / "guest"
    ran = vmferry.run(
        "receive", f"file:{source}", "--guest", f"dir:{folder}", "--workers", str(workers)
    )
    assert ran.status == 1
    offset = data.index(b"abc") + 3 + 11
    assert ran.error == f"offset {offset:#x} (section 'ram'): XBZRLE: it ends within a run"
    assert not folder.exists()


def test_receive_of_huge_ram(vmferry: Any, usual: int) -> None:
    """Broken: a few hundred bytes would make the receiver take all memory."""
    ran = receive(vmferry, declaring(events.RamBlock("pc.ram", 1 << 40), touched=True))
    assert ran.status == 0
    assert ran.rss < usual + MEMORY


def test_receive_of_impossible_ram(vmferry: Any, usual: int) -> None:
    """Broken: RAM that no file can hold would be a traceback, or leave folders."""
    ran = receive(vmferry, declaring(events.RamBlock("pc.ram", (1 << 46) - 4096)))
    assert ran.rss < usual + MEMORY


def test_receive_of_empty_block(vmferry: Any) -> None:
    """Broken: an empty block would end a process by an exception."""
    blocks = events.RamBlock("none", 0), events.RamBlock("pc.ram", 4096)
    receive(vmferry, declaring(*blocks))


def described(text: str) -> bytes:
    """Return the whole stream, with the `"size": 1024` of its description replaced."""
    changed = streams.DESCRIPTION.text.decode().replace('"size": 1024', text)
    description = events.Description(0, changed.encode(), {})
    return streams.to_bytes([*streams.EVENTS[:-1], description])


@pytest.mark.parametrize(
    "text",
    [
        '"size": null',
        '"size": -1',
        '"size": 1e3, "array_len": "x"',
        '"size": NaN',
        '"size": 1' + "0" * 5000,
        '"size": [' + "[" * 90_000 + "]" * 90_000 + "]",
        '"size": 1e999',
        '"size": 1024}], "subsections": [{"vmsd_name": "' + "x" * 300 + '"',
    ],
)
def test_lying_description(text: str) -> None:
    """Broken: the JSON at the end of a stream would be trusted, and end in a traceback."""
    data = described(text)
    assert data != streams.SMALL
    assert read_outcome(data, {}) == "StreamError"


def test_many_false_ends() -> None:
    """Broken: a device section full of what looks like ends would take quadratic time."""
    false_ends = b"\0\6\0\0\0\1{" * 120_000 + b"}"
    evil = events.DeviceSection(0, 9, "evil", 0, 1, false_ends, footer=False)
    data = streams.to_bytes([*streams.EVENTS[:-2], evil])
    assert outcome(lambda: verify(io.BytesIO(data), {}), seconds=2) == "StreamError"
