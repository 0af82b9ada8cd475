"""Write an own guest, and migrate it while it runs.

    python own_guest.py

The guest is a counter in a thread: its memory is a page of one RAM block, its device state a name.
"""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
from vmferry.guest import ProgramGuest
from vmferry.receiver import Receiver
from vmferry.sender import Sender


class Counter(ProgramGuest):
    """A guest that counts in the first eight bytes of its memory."""

    greeting = ""

    def start(self) -> None:
        """Count on, in a thread."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def stop(self) -> None:
        """Stop counting; memory does not change when this returns."""
        self._ending.set()
        self._thread.join()

    def save(self) -> bytes:
        """Return the state outside of memory."""
        return self.greeting.encode()

    def load(self, state: bytes) -> None:
        """Take over the state that `save` returned at the source."""
        self.greeting = state.decode()

    @property
    def count(self) -> int:
        """Return how far it has counted."""
        return int(self.memory("ram")[:8].view(np.uint64)[0])

    def _count(self) -> None:
        number = self.memory("ram")[:8].view(np.uint64)
        while not self._ending.wait(0.001):
            number += 1


def main() -> None:
    """Move the counter from one object to another, and let it count on there."""
    source, destination = Counter("counter-1", {"ram": 16 << 20}), Counter("counter-1")
    source.greeting = "hello"
    source.resume()
    listening: SimpleQueue[str] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        receiver = Receiver(destination, f"unix:{folder}/migration")
        arrived = pool.submit(receiver.run, None, listening.put)
        listening.get()
        Sender(source, f"unix:{folder}/migration").run()
        arrived.result()
    left, now = source.count, destination.count
    while destination.count == now:
        threading.Event().wait(0.01)
    print(f"{destination.greeting}: left at {left}, counts on from there: {now >= left}")
    print(f"runs at the source: {source.running}, at the destination: {destination.running}")
    source.close()
    destination.close()


if __name__ == "__main__":
    main()
