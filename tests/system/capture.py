"""Listens for RARP frames until it is terminated: `python -m tests.system.capture DEVICE`.

It prints "listening" once it does, and then a line for each frame: when it arrived (seconds), and
its bytes in hexadecimal.
"""

from __future__ import annotations

import socket
import sys

from tests.system.arrival import note_arrivals, receive

RARP = 0x8035


def main(device: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(RARP)) as listening:
        note_arrivals(listening)
        listening.bind((device, RARP))
        print("listening", flush=True)
        while True:
            at, frame = receive(listening)
            print(at, frame.hex(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
