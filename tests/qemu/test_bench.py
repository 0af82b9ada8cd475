"""`vmferry bench` beside a real QEMU."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.qemu.machine import qemu_command, vmferry


@pytest.mark.slow
def test_quick_benchmark() -> None:
    """Broken: nobody could compare vmferry with the QEMU that he has."""
    command, environment = qemu_command("10")
    settings = [f"{name}={value}" for name, value in environment.items()]
    qemu = shlex.join(["env", *settings, *command])
    ran = vmferry("bench", "--quick", "--qemu", qemu, "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    results = report["results"]
    assert {its["program"] for its in results} == {"vmferry", "qemu", "limit"}
    assert {its["variant"] for its in results} == {"plain", "xbzrle", "zstd"}
    for result in results:
        assert result["throughput"] > 0
        if result["program"] != "limit":
            # It writes about as much as it shall, also on a machine that is busy.
            assert result["writes"] == "still" or result["written"] > 0
            assert result["beyond"]["destination"] > 0
    assert report["first-byte"]["qemu migrate"] > 0
