"""Test what users write: guests, options, sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import GuestError
from vmferry.guest.open import open_guest
from vmferry.guest.sizes import format_size, parse_size
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.synthetic_options import Options, parse_options

MIB = 1 << 20


def test_schemes(tmp_path: Path) -> None:
    """Broken: a guest would be opened as another kind."""
    assert isinstance(open_guest(f"dir:{tmp_path}"), DirectoryGuest)
    empty = open_guest("synthetic:")
    assert isinstance(empty, SyntheticGuest)
    empty.close()


@pytest.mark.parametrize("text", ["", "dir", "disk:x", ":", "dir:", "C:dir"])
def test_unknown_scheme_lists_the_known(text: str) -> None:
    """Broken: a slip of the keyboard would leave a user guessing."""
    with pytest.raises(GuestError) as caught:
        open_guest(text)
    assert "dir:" in str(caught.value)
    assert text in str(caught.value)


def test_options() -> None:
    """Broken: an option would have no effect, or another one's."""
    text = "512M,dirty-rate=100MiB/s,hot=25%,zero=50%,seed=9,heartbeat=/x/y,orphan=1.5"
    assert parse_options(text) == Options(
        size=512 * MIB,
        dirty_rate=100 * MIB,
        hot=128 * MIB,
        zero=0.5,
        seed=9,
        heartbeat="/x/y",
        orphan=1.5,
    )
    assert parse_options("1M,hot=64K").hot == 65536
    assert parse_options("heartbeat=h") == Options(heartbeat="h")
    assert parse_options("") == Options()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1M,colour=red", "unknown option 'colour'; known are dirty-rate, hot, zero, seed"),
        ("1M,", "unknown option ''"),
        ("much", "'much' is not a size"),
        ("-1M", "'-1M' is not a size"),
        ("5000", "size 5000 is not a multiple of 4096"),
        ("1M,dirty-rate=fast", "option dirty-rate: 'fast' is not a size"),
        ("1M,hot=101%", "option hot: '101%' is not between"),
        ("1M,zero=nan", "option zero: 'nan' is not between"),
        ("1M,zero=2", "option zero: '2' is not between"),
        ("1M,seed=-1", "option seed: '-1' is not a number"),
        ("1M,orphan=inf", "option orphan: 'inf' is not a number"),
    ],
)
def test_wrong_options_are_one_line(text: str, said: str) -> None:
    """Broken: a wrong option would be a traceback, or silently ignored."""
    with pytest.raises(GuestError) as caught:
        open_guest(f"synthetic:{text}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("512M", 512 * MIB),
        ("2G", 2048 * MIB),
        ("1.5GiB", 1536 * MIB),
        ("100MiB/s", 100 * MIB),
        ("8k", 8192),
        ("1 MB", MIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """Broken: a limit or size would be off by a factor."""
    assert parse_size(text) == size


@given(st.integers(0, 1 << 50))
def test_sizes_for_people_come_back(count: int) -> None:
    """Broken: what is printed would be another size than meant."""
    assert abs(parse_size(format_size(count)) - count) <= count * 0.05 + 1
