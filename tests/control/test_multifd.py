"""A guest that two services pass on over several connections, each told by QMP."""

from __future__ import annotations

from pathlib import Path

from tests.control.serving import Serve


def test_guest_crosses_over_channels(serve: Serve, tmp_path: Path) -> None:
    """Broken: a client of QEMU's could not have a service receive over several connections."""
    source = serve("synthetic:4M,dirty-rate=1M")
    target = serve("synthetic:", "--incoming", "defer")
    for side in (source, target):
        side.set(multifd=True, return_path=True)
        side.ask("migrate-set-parameters", multifd_channels=3)
    target.ask("migrate-incoming", uri=f"unix:{tmp_path}/in")
    source.ask("migrate", uri=f"unix:{tmp_path}/in")
    answer = source.wait_for("completed")
    assert answer["ram"]["multifd-bytes"] > 4 << 20
    target.wait_for("completed")
    assert target.run_state() == "running"
