"""`vmferry bench`: the memories it moves, and what it tells."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.mark.parametrize("content", ["random", "zero", "untouched"])
def test_measures_a_migration(content: str, vmferry: Any) -> None:
    """Broken: the numbers in our documents could not be measured again."""
    ran = vmferry.run("bench", "--size", "16M", "--runs", "1", "--content", content, "--json")
    assert ran.status == 0, ran.err
    (result,) = json.loads(ran.out)
    assert result["program"] == "vmferry"
    assert result["content"] == content
    assert result["throughput"] > 0
    assert result["cpu"] >= 0


def test_qemu_that_is_not_there(vmferry: Any) -> None:
    """Broken: a wrong --qemu would be a traceback."""
    ran = vmferry.run("bench", "--size", "16M", "--runs", "1", "--qemu", "/none/qemu")
    assert ran.status == 1
    assert ran.err.splitlines()[-1] == "vmferry: /none/qemu: No such file or directory"


def test_odd_size(vmferry: Any) -> None:
    """Broken: QEMU and vmferry would be given different sizes."""
    ran = vmferry.run("bench", "--size", "1000000")
    assert ran.status == 1
    assert "1 MiB" in ran.error
