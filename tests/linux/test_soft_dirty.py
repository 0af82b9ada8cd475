"""Soft-dirty bits of a real kernel: migrations inside a virtual machine, where the kernel has them.

On demand (`tox -e linux`, and in `.ci/run` where there is time), because a virtual machine without
KVM takes a minute or two for it, and needs the processors for itself. It runs where `VMFERRY_LINUX`
names a kernel image with CONFIG_MEM_SOFT_DIRTY; `.ci/unpack-linux` makes one of Debian's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.linux import initramfs

MODULES = (
    "numpy.random",
    "secrets",
    "tests.guest.tracking.soft_dirty_process",
    "tests.sender.incoming",
    "vmferry.guest.program",
    "vmferry.guest.synthetic_process",
    "vmferry.receiver.transport",
    "vmferry.receiver.worker",
    "vmferry.sender.coordinator",
    "vmferry.sender.transport",
    "vmferry.sender.worker",
    "vmferry.transport.forkserver",
)
"""Python modules that the virtual machine needs, also in the children of its first process."""
LIMIT = 1500
"""Seconds after which a virtual machine is given up, on a machine that is busy otherwise."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what a virtual machine found, by the name of the step."""
    kernel = os.environ.get("VMFERRY_LINUX")
    if not kernel:
        pytest.skip("on demand: VMFERRY_LINUX names no kernel image")
    if shutil.which("qemu-system-x86_64") is None:
        pytest.fail("qemu-system-x86_64 is missing")
    image = tmp_path_factory.mktemp("linux") / "initramfs"
    init = Path(__file__).with_name("soft_dirty_init.py")
    initramfs.write(initramfs.collect(init, MODULES), image)
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"]
    command += ["-m", "1G", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
    command += ["-kernel", kernel, "-initrd", str(image)]
    # Timers of a virtual machine that gets little time seem broken to its kernel.
    command += ["-append", "console=ttyS0 panic=-1 quiet no_timer_check nowatchdog"]
    console = image.with_name("console")
    with console.open("wb") as file:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, timeout=LIMIT, check=True)
    said = console.read_text(errors="replace")
    print(said)
    assert '"end"' in said
    lines = [line.split(None, 1) for line in said.splitlines()]
    found = [json.loads(line[1]) for line in lines if len(line) == 2 and line[0] == "RESULT"]
    return {values.pop("name"): values for values in found}


@pytest.mark.timeout(LIMIT + 60)
def test_bits_are_exact(results: dict[str, dict[str, Any]]) -> None:
    """Broken: what this kernel marks would not be what was written."""
    assert results["kernel"]["has"]
    exact = results["exact"]
    assert exact["first"] == 1003
    assert exact["none"] == 0
    assert exact["counted"] == 3 * 4096
    assert exact["found"] == [5, 9, 999]


@pytest.mark.timeout(LIMIT + 60)
def test_memory_is_equal(results: dict[str, dict[str, Any]]) -> None:
    """Broken (law 1): pages would arrive stale, torn, or not at all."""
    for name in ("auto", "workers 1", "workers 4", "slow"):
        result = results[name]
        assert "error" not in result, (name, result)
        assert result["tracker"] == "soft-dirty"
        assert result["rounds"] > 4
        assert (result["differ"], result["bad"]) == (0, 0), name


@pytest.mark.timeout(LIMIT + 60)
def test_law_broken_on_purpose(results: dict[str, dict[str, Any]]) -> None:
    """Broken: a guest that is not held would lose no pages, so these tests would prove nothing."""
    assert results["broken"]["differ"] > 0
    assert results["broken"]["bad"] > 0
