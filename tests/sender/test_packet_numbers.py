"""The numbers of packets of several channels, which different processes take."""

from __future__ import annotations

import subprocess
import sys

from vmferry.sender.multifd.numbers import PacketNumbers

TURNS = 500
TAKE = f"""
import sys
from vmferry.sender.multifd.numbers import PacketNumbers
from vmferry.transport.shared import SharedFd
numbers = PacketNumbers(SharedFd(int(sys.argv[1])))
print(*(number for turn in range({TURNS}) for number in numbers.take(1 + turn % 3)))
"""


def test_no_number_twice_and_none_missing() -> None:
    """Broken: who reads kept channels would take a whole migration for one that lacks a channel."""
    memory, count = PacketNumbers.memory(), 3
    fd = memory.fileno()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    words = [process.communicate()[0].split() for process in processes]
    memory.close()
    found = sorted(int(word) for each in words for word in each)
    assert found == [*range(len(found))]
    assert len(found) == count * sum(1 + turn % 3 for turn in range(TURNS))
