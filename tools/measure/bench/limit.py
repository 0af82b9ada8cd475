"""The machine's own limit: one process sends from memory, another receives into memory."""

from __future__ import annotations

import socket
import time
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from ....guest.mapping import map_block, populate
from ....guest.parts import RamBlock
from ....guest.synthetic_memory import PAGE_SIZE
from ....transport.process import send_message, start_child, stop_children
from ....transport.shared import SharedFd
from ..children import next_message
from .memory import Memory
from .results import Run

PIECE = 512 << 10
"""Bytes of one call: the size at which loopback TCP is the fastest."""


def measure_limit(memory: Memory) -> Run:
    """Return what it takes to move the memory over loopback TCP without looking at it.

    Raises ChildError.
    """
    receiver = start_child("vmferry-limit", _receive, (memory.destination, memory.size))
    try:
        port = next_message(receiver)
        sender = start_child("vmferry-limit", _send, (memory.source, memory.size, port))
        try:
            started, cpu = next_message(sender)
            ended, cpu_received = next_message(receiver)
        finally:
            stop_children([sender])
    finally:
        stop_children([receiver])
    return Run(ended - started, cpu=cpu + cpu_received, transferred=memory.size)


def _map(memory: SharedFd, size: int) -> npt.NDArray[np.uint8]:
    return map_block(RamBlock("", size, PAGE_SIZE, memory.fileno()))


def _send(connection: Connection, memory: SharedFd, size: int, port: int) -> None:
    ram = _map(memory, size)
    # The guest that wrote its pages has them mapped.
    populate(ram, write=True)
    with socket.create_connection(("127.0.0.1", port)) as channel:
        started, cpu = time.monotonic(), time.process_time()
        for start in range(0, size, PIECE):
            channel.sendall(ram[start : start + PIECE].data)
        send_message(connection, (started, time.process_time() - cpu))


def _receive(connection: Connection, memory: SharedFd, size: int) -> None:
    ram = _map(memory, size)
    with socket.create_server(("127.0.0.1", 0)) as server:
        send_message(connection, server.getsockname()[1])
        channel, _ = server.accept()
    with channel:
        cpu, at = time.process_time(), 0
        while at < size:
            count = channel.recv_into(ram[at : at + PIECE].data)
            if not count:
                raise EOFError("the sending process died")
            at += count
        send_message(connection, (time.monotonic(), time.process_time() - cpu))
