"""Test vmferry's extensions of QMP: compression, workers, stalls and forecasts."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from vmferry.control.extensions import PREFIX, stall_as_qmp, under_own_names
from vmferry.sender.stall import Advice, Explanation, Remedy, Stall
from vmferry.tools.client.ctl import Watched

from tests.control.serving import Serve, Serving
from tests.patience import PATIENCE

STALLING = "synthetic:1M,dirty-rate=40M,hot=256K,zero=0,pattern=sparse"
"""Writes up to 40 MiB/s to 64 pages, a little in each."""
STALL = f"{PREFIX}MIGRATION_STALL"


def own(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the members that QEMU has not."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in answer.items()
        if name.startswith(PREFIX)
    }


def change(service: Serving, **values: Any) -> None:
    """Set vmferry's own parameters, with `_` for `-`."""
    wanted = {PREFIX + name.replace("_", "-"): value for name, value in values.items()}
    service.qmp.cmd("migrate-set-parameters", **wanted)


def stalling(serve: Serve) -> Serving:
    """Yield a service whose guest writes more than may be sent, also on a busy machine."""
    source = serve(STALLING)
    source.set(events=True)
    source.ask("migrate-set-parameters", max_bandwidth=256 << 10, downtime_limit=0)
    return source


TRIES = range(6)
"""A busy machine may give the guest no time to outrun its link; then it converges: try again."""


def ended(source: Serving) -> bool:
    """Return whether a migration from a service is over."""
    return bool(source.ask("query-migrate").get("status") == "completed")


WRONG = (
    *(("compress", "lzop"), ("compress", "zstd:99"), ("compress", 1)),
    *(("workers", -1), ("workers", 65), ("workers", True), ("workers", "many")),
    ("on-stall", "panic"),
)


def test_wrong_values(serve: Serve) -> None:
    """Broken: a migration would fail later, or ignore what was asked for."""
    service = serve("synthetic:1M")
    before = service.ask("query-migrate-parameters")
    for name, value in WRONG:
        said = service.error("migrate-set-parameters", **{PREFIX + name: value})
        assert said.startswith("GenericError: ")
        assert f"'{PREFIX}{name}'" in said
    assert service.ask("query-migrate-parameters") == before


def test_compression_and_forecast(serve: Serve, tmp_path: Path) -> None:
    """Broken: what is set would not be done; or nobody could see what it came to."""
    source = serve("synthetic:32M,dirty-rate=4M,pattern=text")
    destination = serve("synthetic:32M", "--incoming", f"unix:{tmp_path}/migrate")
    change(source, compress="zstd:1", workers=2)
    parameters = source.ask("query-migrate-parameters")
    assert own(parameters) == {
        "compress": "zstd:1",
        "workers": 2,
        "on-stall": "continue",
        "tracker": "auto",
    }
    source.ask("migrate", uri=f"unix:{tmp_path}/migrate")
    assert source.wait_until_over() == "completed"
    destination.wait_for("completed")
    answer = source.ask("query-migrate")
    told = own(answer)
    assert told["compression"]["method"] == "zstd:1"
    # One of each worker.
    assert told["compression"]["levels"] == [1, 1]
    assert told["compression"]["compression-rate"] > 1.2
    assert answer["ram"]["transferred"] < answer["ram"]["normal-bytes"]
    assert told["forecast"].keys() <= {"after-round", "total-time", "downtime"}
    assert told["forecast"]["downtime"] >= 0


def stalled(serve: Serve) -> tuple[Serving, dict[str, Any]]:
    """Yield a service whose migration has stalled, and the data of its event."""
    for _ in TRIES:
        source = stalling(serve)
        source.ask("migrate", uri="exec:cat > /dev/null")
        while not ended(source):
            event = source.qmp.pull_event(wait=PATIENCE)
            assert event is not None
            if event["event"] == STALL:
                return source, dict(event["data"])
    raise AssertionError("no migration has stalled")


def test_stall_is_told_and_ended(serve: Serve) -> None:
    """Broken: a migration without end would look like any other, and no setting could end it."""
    for _ in TRIES:
        source, told = stalled(serve)
        advice = "\n".join(told["advice"])
        assert f"{PREFIX}on-stall switchover" in advice
        assert "--" not in advice
        seen = own(source.ask("query-migrate")).get("stall")
        change(source, on_stall="cancel")
        found = {
            "told in query-migrate as well": seen == told,
            "ended": source.wait_until_over() == "cancelled",
            "told once": STALL not in [name for name, _ in source.events()],
            "limit named": advice.startswith("max-bandwidth of more than"),
            "differences named": bool(re.search(r"^xbzrle would cut .*\d+%", advice, re.M)),
        }
        # A guest without time has rounds that shrink, and a process without time fills no link.
        if all(found.values()):
            return
    pytest.fail(f"in no try all of {found}")


def test_stall_cancels(serve: Serve) -> None:
    """Broken: the guest would be migrated for ever; or nobody would learn why it was cancelled."""
    for _ in TRIES:
        source = stalling(serve)
        change(source, on_stall="cancel")
        source.ask("migrate", uri="exec:cat > /dev/null")
        if source.wait_until_over() == "cancelled":
            break
    answer = source.ask("query-migrate")
    assert answer["status"] == "cancelled"
    assert "rounds do not shrink" in own(answer)["stall"]["reason"]
    names = [name for name, _ in source.events()]
    assert names.count(STALL) == 1
    assert source.run_state() == "running"


def test_watch_shows_them(serve: Serve) -> None:
    """Broken: who watches would not see what helps."""
    said: list[str] = []
    for _ in TRIES:
        source = stalling(serve)
        source.ask("migrate", uri="exec:cat > /dev/null")
        command = [sys.executable, "-m", "vmferry.tools.cli", "ctl", source.address, "watch"]
        watching = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert watching.stderr is not None
        try:
            for line in watching.stderr:
                said.append(line)
                if "what would help: xbzrle" in line:
                    break
        finally:
            watching.terminate()
            watching.communicate()
        if "what would help: xbzrle" in said[-1]:
            break
    assert "what would help: xbzrle" in said[-1], said
    assert any(line.startswith("migrating: rounds do not shrink") for line in said)


def test_watched_figures() -> None:
    """Broken: level and forecast would not be shown, or a peer that says nonsense end it."""
    answer = {
        "status": "active",
        "ram": {"total": 1},
        f"{PREFIX}remaining-time": 1500,
        f"{PREFIX}compression": {"method": "adaptive", "levels": [0, 3], "raw-size": 2},
        f"{PREFIX}stall": {"reason": "no end", "advice": ["xbzrle: 1%"]},
    }
    watched = Watched.of(answer)
    assert watched.remaining_time == 1500
    assert watched.stall == Explanation("no end", ("xbzrle: 1%",))
    assert watched.compression is not None
    assert watched.compression.levels == (0, 3)
    nonsense: object
    for nonsense in (None, 1, [], {}, {"advice": 1, "levels": "1"}, {"levels": [None]}):
        odd: dict[str, Any] = dict.fromkeys((f"{PREFIX}compression", f"{PREFIX}stall"), nonsense)
        silent = Watched.of(answer | odd)
        assert (silent.compression, silent.stall) == (None, None)


def test_words() -> None:
    """Broken: the advice would name options of the command line, or a null be sent."""
    advice = (Advice(Remedy.COMPRESS, part=0.6), Advice(Remedy.DOWNTIME_LIMIT, milliseconds=9))
    assert stall_as_qmp(Stall("it does not end", (*advice, Advice(Remedy.ON_STALL)))) == {
        "reason": "it does not end",
        "advice": [
            f"{PREFIX}compress zstd would cut this traffic to about 60% (estimated from samples)",
            "downtime-limit 9 would allow a stop that is long enough",
            f"{PREFIX}on-stall switchover would stop the guest for as long as it takes",
        ],
    }
    figures = {"ram": {}, "remaining-time": None, "forecast": {"downtime": None, "total-time": 0}}
    assert under_own_names(figures, None) == {"ram": {}, f"{PREFIX}forecast": {"total-time": 0}}


def test_auto_converge(serve: Serve, tmp_path: Path) -> None:
    """Broken: a client could not have a busy guest slowed down, nor see by how much."""
    for number in TRIES:
        seen, answer, states = slowed_down(serve, f"unix:{tmp_path}/{number}")
        if len(seen) > 1:
            break
    assert seen[:2] == [0, 50]
    assert answer["status"] == "completed"
    assert answer[f"{PREFIX}cpu-throttle-highest"] == max(seen)
    assert states == ("postmigrate", "running")


def slowed_down(serve: Serve, uri: str) -> tuple[list[int], dict[str, Any], tuple[str, str]]:
    """Return the percentages seen in a migration, its last figures, and the states of both ends."""
    source = serve("synthetic:1M,dirty-rate=8M,hot=256K,zero=0")
    destination = serve("synthetic:", "--incoming", uri)
    source.set(auto_converge=True, events=True)
    source.ask(
        "migrate-set-parameters",
        max_bandwidth=256 << 10,
        downtime_limit=0,
        cpu_throttle_initial=50,
        cpu_throttle_increment=40,
    )
    source.ask("migrate", uri=uri)
    seen = [0]
    while (answer := source.ask("query-migrate"))["status"] in ("setup", "active"):
        throttled = answer.get("cpu-throttle-percentage", 0)
        # Not there while the guest runs at full speed.
        assert throttled or "cpu-throttle-percentage" not in answer
        if throttled != seen[-1]:
            seen.append(throttled)
        time.sleep(0.02)
    destination.wait_for("completed")
    return seen, answer, (source.run_state(), destination.run_state())
