"""Self-announcement, as far as it needs no network; the frames: `tests/system`, `tests/qemu`."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from vmferry.control.announce import (
    AnnounceError,
    AnnounceParameters,
    Announcer,
    Interface,
    parse_interface,
)


def test_schedule() -> None:
    """Broken: a network that is slow to come up would miss all rounds, or be flooded."""
    assert list(AnnounceParameters().pauses()) == [0, 50, 150, 250, 350]
    capped = replace(AnnounceParameters(), rounds=8, step=200)
    assert list(capped.pauses()) == [0, 50, 250, 450, 550, 550, 550, 550]
    assert list(AnnounceParameters(rounds=0).pauses()) == []


@pytest.mark.parametrize("name", ["initial", "max", "rounds", "step"])
@pytest.mark.parametrize("value", [-1, 100_001])
def test_impossible_parameters(name: str, value: int) -> None:
    """Broken: a mistyped figure would end the thread that announces, or keep it for ever."""
    with pytest.raises(AnnounceError, match=f"announce-{name} {value}"):
        AnnounceParameters(**{name: value})


def test_interface() -> None:
    """Broken: another address would be announced than the user gave."""
    assert parse_interface("eth0") == Interface("eth0")
    mac = bytes.fromhex("525400abcdef")
    assert parse_interface("eth0.5=52:54:00:aB:cd:EF") == Interface("eth0.5", mac)


@pytest.mark.parametrize(
    "text",
    [
        *("", "=52:54:00:12:34:56", "eth0=", "eth0=52:54:00:12:34", "eth0=525400123456"),
        *("eth0=52:54:00:12:34:5g", "eth0=00:00:00:00:00:00", "eth0=01:00:5e:00:00:01"),
    ],
)
def test_malformed_interface(text: str) -> None:
    """Broken: a mistyped address would be announced, or all of them at once."""
    with pytest.raises(AnnounceError, match=repr(text)):
        parse_interface(text)


@pytest.mark.parametrize("name", ["none-such", "lo" + "x" * 30, "l\0o", "\ud800"])
def test_no_such_interface(name: str) -> None:
    """Broken: nobody would learn that the guest was announced nowhere."""
    with pytest.raises(AnnounceError, match="no such interface"):
        Announcer([Interface(name)])


def test_without_permission() -> None:
    """Broken: whoever may not send frames would get a traceback, and only after the migration."""
    code = """
import os
from vmferry.control.announce import AnnounceError, Announcer, Interface
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Announcer([Interface("lo")])
except AnnounceError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "announcing on lo: it takes root, or CAP_NET_RAW\n"


def test_nowhere_to_announce() -> None:
    """Broken: every migration would take the time of an announcement."""
    before = threading.active_count()
    with Announcer(()) as announcer:
        announcer.start()
        assert threading.active_count() == before
        assert announcer.finish() == []
