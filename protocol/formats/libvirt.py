"""Declare libvirt's save image: a header, the domain's XML, and a QEMU stream after them.

Source: images that libvirt 9 made, and the names of its formats in libvirt's qemu.conf
(`save_image_format`).
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

MAGIC = b"LibvirtQemudSave"
UNFINISHED_MAGIC = b"LibvirtQemudPart"
"""Magic of an image that is still being written, or whose writing failed."""
VERSION = 2
FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
"""Compression of the stream, by its number; `sparse` is an uncompressed mapped-ram file."""
PADDING = 64 << 10
"""Bytes that libvirt leaves free after the XML, so that it may be edited."""


def _header(number: c.Construct) -> c.Construct:
    return c.Struct(
        "magic" / c.Bytes(len(MAGIC)),
        "version" / number,
        "data_length" / number,
        "was_running" / number,
        "format" / number,
        "cookie_offset" / number,
        c.Padding(14 * 4),
    )


HEADERS = (_header(c.Int32ul), _header(c.Int32ub))
"""Header in both byte orders: numbers have that of the host that wrote them.

`data_length`: bytes between header and stream: the XML, NUL, from `cookie_offset` on (unless that
is 0) the cookie, NUL, zeros.
"""
HEADER_SIZE: int = HEADERS[0].sizeof()
