"""Run in a network namespace: `capture.py DEVICE` listens for RARP frames until it is terminated.

It prints "listening" once it does, and then a line for each frame: when it came (seconds), and its
bytes in hexadecimal.
"""

from __future__ import annotations

import socket
import sys
import time

RARP = 0x8035


def main(device: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(RARP)) as listening:
        listening.bind((device, RARP))
        print("listening", flush=True)
        while True:
            frame = listening.recv(2048)
            print(time.monotonic(), frame.hex(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
