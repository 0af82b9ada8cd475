"""Migrate a guest that writes its memory from one object to another in this process.

    python migrate.py

The migration is a real one: processes of their own scan, send and apply pages while the guest runs.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from vmferry.guest import open_guest
from vmferry.receiver import Receiver
from vmferry.sender import Sender, SendParameters


def main() -> None:
    """Move 64 MiB, of which the guest keeps writing a tenth, and check every page."""
    source = open_guest("synthetic:64M,dirty-rate=4M,hot=10%")
    destination = open_guest("synthetic:64M", incoming=True)
    listening: SimpleQueue[str] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        uri = f"unix:{folder}/migration"
        receiver = Receiver(destination, uri)
        arrived = pool.submit(receiver.run, None, listening.put)
        listening.get()
        sent = Sender(source, uri, SendParameters(downtime_limit=0.2)).run()
        arrived.result()
    print(f"{sent.dirty_sync_count} rounds, {sent.transferred} bytes, downtime {sent.downtime} ms")
    print(f"runs at the source: {source.running}, at the destination: {destination.running}")
    source.close()
    destination.close()


if __name__ == "__main__":
    main()
