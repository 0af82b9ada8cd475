"""Files are written at an offset, and their holes are known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vmferry.transport.sparse import data_parts, next_data, write_at

MIB = 1 << 20


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a system call that writes less than it was given would leave a gap."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: pwrite(fd, data[:3], place))
    with (tmp_path / "file").open("wb+") as file:
        write_at(file.fileno(), b"0123456789", 5)
        assert os.pread(file.fileno(), 100, 0) == bytes(5) + b"0123456789"


def test_holes() -> None:
    """Broken: holes would be copied as data, or data would be taken for a hole."""
    fd = os.memfd_create("holes", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, 8 * MIB)
        for place in (2 * MIB, 5 * MIB):
            write_at(fd, bytes(MIB), place)
        assert list(data_parts(fd, 0, 8 * MIB)) == [(2 * MIB, 3 * MIB), (5 * MIB, 6 * MIB)]
        middle = (2 * MIB + 4096, 5 * MIB + 4096)
        assert list(data_parts(fd, *middle)) == [(middle[0], 3 * MIB), (5 * MIB, middle[1])]
        assert list(data_parts(fd, 3 * MIB, 5 * MIB)) == []
        assert next_data(fd, 0) == 2 * MIB
        assert next_data(fd, 6 * MIB) is None
    finally:
        os.close(fd)
