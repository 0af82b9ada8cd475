"""Test what a relay shows of the stream that passes, to people and to programs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from vmferry.tools.console import relay_progress
from vmferry.tools.console.relay_progress import RelayProgress

from tests.relay.pair import Pair
from tests.relay.test_pair import run
from tests.relay.test_watch import END_OF_RAM, RAM, WITH_ANSWERS, both


def shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, words: str, *, as_json: bool
) -> list[str]:
    """Return the lines of a near relay through which `data` has passed, the last one with words."""
    lines: list[str] = []

    async def test(pair: Pair) -> None:
        (_, writer), (far_reader, far_writer) = await both(pair)
        progress = RelayProgress(quiet=False, as_json=as_json)
        watching = asyncio.create_task(progress.watch(pair.relays[1]))
        writer.write(data)
        assert await far_reader.readexactly(len(data)) == data
        while not any(words in line for line in lines):
            await asyncio.sleep(0.01)
            found = capsys.readouterr()
            lines.extend((found.out if as_json else found.err).splitlines())
        watching.cancel()
        for one in (writer, far_writer):
            one.close()

    run(test, lambda: Pair(tmp_path))
    return [line for line in lines if words in line]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_progress, "INTERVAL", 0.02)


def test_a_program_gets_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken: a program that steers migrations could not tell how one gets on."""
    words = '"ended": true'
    found: dict[str, Any] = json.loads(
        shown(tmp_path, capsys, WITH_ANSWERS, words, as_json=True)[0]
    )
    assert found["read"] == len(WITH_ANSWERS)
    assert {"rate", "ratio", "encrypted", "held", "cuts", "repeated"} <= found.keys()
    stream = found["stream"]
    assert (stream["ram"], stream["round"], stream["pages-in-round"]) == (RAM, 2, 47)
    assert stream["pages"] == {"zero": RAM // 4096, "plain": 147}
    assert (stream["error"], stream["stall"], stream["remaining-time"]) == (None, None, 0)


def test_people_see_rounds_and_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken: nobody would see how far a migration is."""
    line = shown(tmp_path, capsys, WITH_ANSWERS[:END_OF_RAM], "147 pages plain", as_json=False)[0]
    assert line.startswith("relay: round ")
    assert f"{RAM // 4096} pages zero" in line
    assert "ratio " in line


def test_people_see_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken: nobody would know that all of the guest is at the destination's relay."""
    assert shown(tmp_path, capsys, WITH_ANSWERS, "all of the guest has passed", as_json=False)
