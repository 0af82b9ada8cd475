"""What fuzzing begins with: small inputs that are accepted, of each kind."""

from __future__ import annotations

import json
import zlib

import zstandard

from tests.fuzz.targets import PAGE
from tests.protocol.conftest import to_bytes
from tests.protocol.kinds import KINDS, mapped
from tests.tools.test_containers import save_image
from tests.tools.test_snapshots import Layout


def _description() -> bytes:
    payload = bytes(range(1, 10))
    inner = {"vmsd_name": "s", "version": 1, "fields": [{"name": "a", "type": "int8", "size": 1}]}
    entries = [
        {"name": "n", "type": "uint32", "size": 4},
        {"name": "r", "type": "uint8", "size": 1, "array_len": 4},
        {"name": "s", "type": "struct", "size": 1, "struct": inner},
    ]
    structure = {"name": "d", "instance_id": 0, "fields": entries, "subsections": []}
    return len(payload).to_bytes(2, "big") + payload + json.dumps(structure).encode()


_STREAMS = [to_bytes(made) for made in KINDS.values()]

SEEDS: dict[str, list[bytes]] = {
    "reader": [*_STREAMS, mapped({"ram": [1]}, count=2)[0]],
    "verify": [*_STREAMS, mapped({"ram": [1]}, count=2)[0]],
    "xbzrle": [b"\x05\x03abc\x09\x01d", b"\0\x01a"],
    "compress": [zlib.compress(bytes(PAGE))],
    "libvirt": [save_image(b"")],
    "zstd": [zstandard.compress(bytes(range(256)) * 9), zstandard.compress(b"") * 3],
    "qcow2": [Layout(bytes(1 << 16)).build()],
    "description": [_description()],
}
