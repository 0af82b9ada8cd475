"""A service and real QEMUs that send a guest to each other, each told by QMP."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from tests.control.serving import Monitor, Serving
from tests.qemu.machine import Machine


def test_out_of_a_qemu_and_into_one(version: str, tmp_path: Path) -> None:
    """Broken: a service could only migrate to and from its like."""
    with ExitStack() as stack:
        source = Machine(version, tmp_path / "source")
        stack.callback(source.stop)
        source.wait_for_beats()
        options = ("--incoming", f"unix:{tmp_path}/in")
        service = Serving(tmp_path / "service", f"dir:{tmp_path}/guest", *options)
        stack.callback(service.stop)
        for side in (Monitor(source.qmp), service):
            side.set(events=True, return_path=True)
        source.migrate(f"unix:{tmp_path}/in")
        service.wait_for("completed")
        # A guest at rest does not run here.
        assert service.run_state() == "paused"
        assert ("MIGRATION", "completed") in service.events()
        assert "at rest cannot run" in service.error("cont")

        target = Machine(version, tmp_path / "target", "-incoming", "defer")
        stack.callback(target.stop)
        # One that nobody takes stays, and may go elsewhere.
        service.ask("migrate", uri=f"unix:{tmp_path}/nobody")
        assert service.wait_until_over() == "failed"
        target.ask("migrate-incoming", uri=f"unix:{tmp_path}/out")
        service.ask("migrate", uri=f"unix:{tmp_path}/out")
        service.wait_for("completed")
        target.wait_for("completed")
        assert service.run_state() == "postmigrate"
        assert target.ask("query-status")["status"] == "running"
        target.wait_for_beats()
