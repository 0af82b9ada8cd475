"""Print what a migration stream, a libvirt save image or a qcow2 snapshot holds.

    python read_stream.py FILE

Every event of the stream is an object. Pages arrive in runs: numpy arrays that are valid until the
next event is read.
"""

from __future__ import annotations

import sys
from collections import Counter

from vmferry.protocol import VmferryError, events
from vmferry.tools import open_stream, read_events


def main(path: str) -> None:
    """Print RAM blocks, pages by block, and devices."""
    pages: Counter[str] = Counter()
    zero: Counter[str] = Counter()
    with open_stream(path) as opened:
        for event in read_events(opened.stream):
            match event:
                case events.RamBlocks():
                    for block in event.blocks:
                        print(f"RAM block {block.name}: {block.length} bytes")
                case events.PageRun():
                    (zero if event.data is None else pages)[event.block.name] += len(event.offsets)
                case events.DeviceSection():
                    size = len(event.payload)
                    print(f"device {event.name} instance {event.instance_id}: {size} bytes")
    for name in sorted({*pages, *zero}):
        print(f"{name}: {pages[name]} pages with content, {zero[name]} filled with one byte")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (VmferryError, OSError) as error:
        sys.exit(str(error))
