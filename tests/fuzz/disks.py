"""Damage streams with disks at random and receive them: `python -m tests.fuzz.disks --count N`.

Each variant is read, and its blocks are written, as a receiver's transport process does it. An
image whose size a user has said keeps it, and nothing may be raised but an error of one line.
"""

from __future__ import annotations

import argparse
import os
import random
from collections import Counter
from multiprocessing.connection import Connection, Pipe
from typing import Any, cast

from vmferry.guest.disks.image import MAX_DISK, Disk
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.section_events import DiskBlock, DiskProgress, EndOfDisks
from vmferry.protocol.wire.marks import SectionType
from vmferry.receiver.disks import DiskWriter
from vmferry.receiver.exchange import Commands, DiskWanted
from vmferry.receiver.transport import TRANSPORT_COUNTERS
from vmferry.transport.counters import Counters
from vmferry.transport.spill import FileError

from tests import streams
from tests.disks import MIB
from tests.fuzz.channels import in_time
from tests.fuzz.damaged import KINDS

SECTION_ID = 9
FIXED, SIZES = "disk0", {"disk0": 3 * MIB + 512, "disk1": None}
"""The disks: one whose image has the disk's size, and one whose image grows."""
DATA = random.Random(1).randbytes(MIB)


def whole() -> tuple[bytes, list[int]]:
    """Return a stream with both disks, and where its records begin."""
    disks: list[events.Event] = [DiskBlock(0, FIXED, 0, DATA)]
    for number in range(4):
        disks += [DiskProgress(0, 24 * number), DiskBlock(0, FIXED, 2048 * number, None)]
        disks += [DiskBlock(0, "disk1", 2048 * number, None)]
    disks += [DiskProgress(0, 99), EndOfDisks(0)]
    data, starts = streams.to_bytes([*streams.opening(), _piece(SectionType.START)]), list[int]()
    data += streams.to_bytes([EndOfDisks(0), *_footer(), _piece(SectionType.PART)])
    for record in disks:
        starts.append(len(data))
        data += streams.to_bytes([record])
    ends = [*_footer(), _piece(SectionType.END), DiskProgress(0, 100), EndOfDisks(0), *_footer()]
    return data + streams.to_bytes([*ends, *streams.closing()]), starts


def _piece(kind: SectionType) -> events.Event:
    return events.IterativeSection(0, kind, SECTION_ID, "block", 0, 1)


def _footer() -> list[events.Event]:
    return [events.Footer(0, SECTION_ID)]


STREAM, STARTS = whole()


def _record(data: bytes, chance: random.Random) -> bytes:
    """Set sector and flags of a record to what a program may stumble over."""
    place, sector = chance.choice(STARTS), chance.choice((0, 1, 2047, 2048, 1 << 40, (1 << 55) - 1))
    value = sector << 9 | chance.choice((1, 2, 4, 8, 9, 0x1FF, chance.getrandbits(9)))
    return data[:place] + value.to_bytes(8, "big") + data[place + 8 :]


def _name(data: bytes, chance: random.Random) -> bytes:
    """Set the length of a name, or its first character."""
    place = chance.choice(STARTS) + chance.choice((8, 9))
    return data[:place] + bytes([chance.choice((0, 1, 5, 6, 46, 47, 255))]) + data[place + 1 :]


DAMAGES = {**KINDS, "record": _record, "name": _name, "another record": _record}


class Images:
    """The images of both disks; it answers as the coordinator does."""

    def __init__(self) -> None:
        self.fds = {name: os.memfd_create(name) for name in SIZES}
        self._asked, self.connection = Pipe(duplex=False)
        for name, size in SIZES.items():
            os.truncate(self.fds[name], size or 0)

    def wait_for(self, kind: type[Any]) -> Images:
        """Take the question for the next disk."""
        del kind
        asked = self._asked.recv()
        assert isinstance(asked, DiskWanted)
        self._wanted = asked.name
        return self

    def receive(self, connection: Connection) -> Disk:
        """Return the disk that was asked for. Raises StreamError if there is none."""
        del connection
        name = self._wanted
        if name not in SIZES:
            raise StreamError(f"no disk is called {name!r}", offset=0)
        return Disk(name, SIZES[name], self.fds[name], name)

    def check(self) -> None:
        """Raise AssertionError unless the images have sizes that they may have."""
        sizes = {name: os.fstat(fd).st_size for name, fd in self.fds.items()}
        assert sizes[FIXED] == SIZES[FIXED]
        assert sizes["disk1"] % MIB == 0
        assert sizes["disk1"] <= MAX_DISK

    def close(self) -> None:
        """Close the images."""
        for fd in self.fds.values():
            os.close(fd)
        self._asked.close()
        self.connection.close()


def receive(data: bytes, images: Images) -> str:
    """Receive a stream, and return the error, if any."""
    counters, commands = Counters.create(TRANSPORT_COUNTERS), cast(Commands, images)
    writer = DiskWriter(images.connection, commands, counters)
    reader = StreamReader(max_device_state=MIB)
    try:
        for start in range(0, len(data), 300_000):
            for event in reader.feed(data[start : start + 300_000]):
                if isinstance(event, (DiskBlock, DiskProgress)):
                    writer.take(event)
        reader.close()
        writer.finish()
    except StreamError as error:
        return str(error)
    except FileError as error:
        return error.line
    finally:
        writer.close()
        counters.close()
    return ""


def run(count: int, seed: int = 0) -> Counter[str]:
    """Receive `count` variants, the kinds of damage in turn; return how many were refused, by kind.

    Raises what went wrong, with the variant's number.
    """
    refused: Counter[str] = Counter()
    for number in range(count):
        kind = [*DAMAGES][number % len(DAMAGES)]
        chance = random.Random(f"{seed}/{number}")
        data, images = DAMAGES[kind](STREAM, chance), Images()
        try:
            with in_time():
                error = receive(data, images)
            images.check()
            assert error.isprintable()
        except BaseException as fault:
            raise AssertionError(f"variant {number} of seed {seed}: {kind}") from fault
        finally:
            images.close()
        refused[kind] += bool(error)
    return refused


def main() -> None:
    """Run, and say what was done."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.disks", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    refused = run(given.count, given.seed)
    for kind, number in sorted(refused.items()):
        print(f"{number:7} refused: {kind}")
    print(f"{given.count:7} variants, none of which wrote outside the disks")


if __name__ == "__main__":
    main()
