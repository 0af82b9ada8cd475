"""Make the seeds of fuzzing: small inputs of each kind that are accepted."""

from __future__ import annotations

import bz2
import gzip
import json
import zlib

import zstandard
from vmferry.protocol.formats.libvirt import FORMATS

from tests.fuzz.targets import PAGE
from tests.protocol.kinds import KINDS, closely, mapped
from tests.streams import to_bytes
from tests.tools.salvaging import small_pages
from tests.tools.test_containers import ALONE, save_image
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
_MAPPED = [
    mapped({"ram": [0, 2], "rom": [1]}, page_size=256, count=3, place_of=closely)[0],
    mapped({"ram": list(range(9)), "rom": []}, page_size=1024, count=9, place_of=closely)[0],
]
_SMALL = to_bytes(KINDS["nothing-told"])

SEEDS: dict[str, list[bytes]] = {
    "reader": [*_STREAMS, *_MAPPED],
    "verify": [*_STREAMS, *_MAPPED],
    "partial": [*_STREAMS, *_MAPPED, small_pages()],
    "mapped-pages": _MAPPED,
    "container": [
        *(compress(_SMALL) for compress in ALONE.values()),
        save_image(_SMALL),
        *(save_image(ALONE[name](_SMALL), format=FORMATS.index(name)) for name in ALONE),
        Layout(_SMALL).build(),
        Layout(_SMALL, extended=True, bits=14).build(),
        gzip.compress(save_image(bz2.compress(_SMALL), format=2)),
    ],
    "xbzrle": [b"\x05\x03abc\x09\x01d", b"\0\x01a"],
    "compress": [zlib.compress(bytes(PAGE))],
    "libvirt": [save_image(b"")],
    "zstd": [zstandard.compress(bytes(range(256)) * 9), zstandard.compress(b"") * 3],
    "qcow2": [Layout(bytes(1 << 16)).build()],
    "description": [_description()],
}
