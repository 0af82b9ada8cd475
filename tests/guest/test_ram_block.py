"""RAM blocks: a description that no migration can use is refused where it is written."""

from __future__ import annotations

import pytest
from vmferry.guest.parts import RamBlock
from vmferry.protocol.errors import ParameterError


@pytest.mark.parametrize(
    ("length", "page_size", "told"),
    [
        (4096, 1000, "page_size: 1000 is not a power of 2 from 256 to 65536"),
        (4096, 128, "page_size: 128 is not"),
        (4096, 1 << 17, "page_size: 131072 is not"),
        (4096, 0, "page_size: 0 is not"),
        (5000, 4096, "length: 5000 is not whole pages of 4096"),
        (-4096, 4096, "length: -4096 is not"),
    ],
)
def test_no_whole_pages(length: int, page_size: int, told: str) -> None:
    """Broken: the destination would refuse the guest, or pages would be cut."""
    with pytest.raises(ParameterError, match=f"^{told}"):
        RamBlock("ram", length, page_size, fd=0)


def test_whole_pages() -> None:
    """Broken: a guest with small or large pages, or an empty block, could not be described."""
    for length, page_size in ((256, 256), (1 << 16, 1 << 16), (0, 4096)):
        RamBlock("ram", length, page_size, fd=0)
