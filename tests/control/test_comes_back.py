"""A guest that left a service comes back to it."""

from __future__ import annotations

from pathlib import Path

from tests.control.serving import Serve


def test_guest_goes_there_and_back(serve: Serve, tmp_path: Path) -> None:
    """Broken: a service whose guest has left could take no other in, or mix up the two."""
    here = serve("synthetic:8M,dirty-rate=1M")
    there = serve("synthetic:", "--incoming", "defer")
    address = f"unix:{tmp_path}/migrate"
    assert "-incoming" in here.error("migrate-incoming", uri=address)
    for _ in range(2):
        there.ask("migrate-incoming", uri=address)
        assert there.run_state() == "inmigrate"
        assert there.ask("query-migrate")["status"] == "setup"
        here.ask("migrate", uri=address)
        here.wait_for("completed")
        there.wait_for("completed")
        assert (here.run_state(), there.run_state()) == ("postmigrate", "running")
        here, there = there, here
