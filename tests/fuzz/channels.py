"""Damage multifd channels at random and receive them: `python -m tests.fuzz.channels --count N`.

Each variant is read as a receiver's process reads a channel, into memory with guards around each
block. Nothing may be written but the blocks, and nothing may be raised but an error of one line.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Pipe
from types import FrameType

from vmferry.guest.parts import RamBlock
from vmferry.protocol.errors import StreamError
from vmferry.protocol.wire import multifd
from vmferry.protocol.wire.multifd import Compression
from vmferry.receiver.multifd.channel import ChannelInput, ChannelSetup
from vmferry.receiver.multifd.sync import ChannelSteps, Steps
from vmferry.transport.channel import Channel

from tests.fuzz.damaged import KINDS, SECONDS, HangError
from tests.protocol.channels import BLOCKS, migration
from tests.streams import PAGE

GUARD = 0xA5
"""The byte that surrounds each block."""
_OFFSETS = multifd.PACKET_HEADER_SIZE // 4
"""Place of a packet's first offset, in words of 4 bytes."""
_MAGIC = multifd.MAGIC.to_bytes(4, "big")


def _field(data: bytes, chance: random.Random) -> bytes:
    """Set a number of some packet's header, or an offset, to what a program may stumble over."""
    starts, at = [], data.find(_MAGIC)
    while at >= 0:
        starts.append(at)
        at = data.find(_MAGIC, at + 1)
    changed = bytearray(data)
    words = (*range(9), *range(_OFFSETS, _OFFSETS + 16))
    place = chance.choice(starts) + 4 * chance.choice(words)
    values = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, chance.getrandbits(32), 129, PAGE)
    changed[place : place + 4] = chance.choice(values).to_bytes(4, "big")
    return bytes(changed[: len(data)])


DAMAGES = {**KINDS, "field": _field, "another field": _field, "a third field": _field}


class Alone(ChannelSteps):
    """The steps of a channel whose main channel is always there already."""

    finished = False

    def pass_sync(self) -> bool:
        """Go on without waiting for other channels."""
        return True

    def end(self) -> None:
        """Go on without waiting for other channels."""

    def drained(self) -> None:
        """Do nothing: nobody waits for this."""


class Memory:
    """Two blocks of RAM in one file, guards around them."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("fuzzed")
        place, blocks = PAGE, []
        for block in BLOCKS:
            blocks.append(RamBlock(block.name, block.length, PAGE, self.fd, place))
            place += block.length + PAGE
        self.blocks = tuple(blocks)
        os.ftruncate(self.fd, place)
        self._guards = [0, *(block.file_offset + block.length for block in blocks)]
        for guard in self._guards:
            os.pwrite(self.fd, bytes([GUARD]) * PAGE, guard)
        self._size = place

    def check(self) -> None:
        """Check that all guards are as they were."""
        assert os.fstat(self.fd).st_size == self._size
        for guard in self._guards:
            assert os.pread(self.fd, PAGE, guard) == bytes([GUARD]) * PAGE

    def image(self) -> dict[str, bytes]:
        """Return what the blocks hold."""
        return {b.name: os.pread(self.fd, b.length, b.file_offset) for b in self.blocks}


def receive(data: bytes, memory: Memory) -> str:
    """Receive a channel's bytes, and return the error, if any."""
    steps, (ours, theirs) = Steps.create(1), Pipe()
    file = os.memfd_create("channel")
    os.write(file, data)
    os.lseek(file, 0, os.SEEK_SET)
    channel = Channel(file, "a channel")
    setup = ChannelSetup(0, steps.signals, steps.go[0], steps.counters[0])
    try:
        taking = ChannelInput(ours, channel, setup, memory.blocks)
        taking._steps = Alone(ours, setup.signals, setup.go, setup.counters)
        taking.run()
    except StreamError as error:
        return str(error)
    finally:
        steps.close()
        channel.drop()
        ours.close()
        theirs.close()
    return ""


@contextmanager
def in_time() -> Iterator[None]:
    def hang(_: int, __: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(count: int, seed: int = 0) -> Counter[str]:
    """Receive `count` variants, the kinds of damage in turn; return how many were refused, by kind.

    Raises what went wrong, with the variant's number.
    """
    streams = [
        channel
        for kind in (Compression.NONE, Compression.ZLIB, Compression.ZSTD)
        for channel in migration(kind).channels
    ]
    refused: Counter[str] = Counter()
    memory = Memory()
    try:
        for number in range(count):
            kind = [*DAMAGES][number % len(DAMAGES)]
            chance = random.Random(f"{seed}/{number}")
            data = DAMAGES[kind](chance.choice(streams), chance)
            if number % 2:
                # Pages that do not exist yet are written in another way.
                os.close(memory.fd)
                memory = Memory()
            try:
                with in_time():
                    error = receive(data, memory)
                memory.check()
                assert error.isprintable()
            except BaseException as fault:
                raise AssertionError(f"variant {number} of seed {seed}: {kind}") from fault
            refused[kind] += bool(error)
    finally:
        os.close(memory.fd)
    return refused


def main() -> None:
    """Run, and say what was done."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.channels", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    refused = run(given.count, given.seed)
    for kind, number in sorted(refused.items()):
        print(f"{number:7} refused: {kind}")
    print(f"{given.count:7} variants, none of which wrote outside guest memory")


if __name__ == "__main__":
    main()
