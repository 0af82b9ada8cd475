"""Make the vmstate description of devices whose state is opaque: one buffer each.

Source: QEMU's documentation, docs/devel/migration/main.rst, on the description at a stream's end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from .parts import DeviceSection


def describe_opaque(sections: Iterable[DeviceSection], page_size: int) -> bytes:
    """Return the description of these sections as JSON text.

    It confirms where each section ends, so a destination does not have to guess.
    """
    devices = [
        {
            "name": section.name,
            "instance_id": section.instance_id,
            "vmsd_name": section.name,
            "version": section.version,
            "fields": [{"name": "data", "type": "buffer", "size": len(section.payload)}],
        }
        for section in sections
    ]
    return json.dumps({"page_size": page_size, "devices": devices}).encode()
