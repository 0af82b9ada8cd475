"""Test what the shell offers when the user presses the tabulator key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vmferry.tools.cli import COMMANDS

from tests.patience import PATIENCE

SCRIPT = """
eval "$(_VMFERRY_COMPLETE=bash_source vmferry)"
# Only readline can set these options.
compopt() { :; }
COMP_LINE=$1 COMP_POINT=${#1}
_vmferry_completion vmferry
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a guest, a stream, and something that is hidden."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved as").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def offered(line: str, folder: Path) -> list[str]:
    """Return what bash would offer behind this line, in its own order."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT, "bash", f"vmferry {line}"],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert ran.stderr == ""
    return ran.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", list(COMMANDS)),
        ("se", ["send", "serve"]),
        ("send ", ["tcp:", "unix:", "exec:", "fd:", "file:"]),
        ("send fi", ["file:"]),
        # Bash replaces what stands behind the colon alone.
        ("send file:", ["saved\\ as", "saved/"]),
        ("receive unix:sav", ["saved\\ as", "saved/"]),
        ("receive tcp:h", [""]),
        ("serve --qmp ", ["unix:", "tcp:"]),
        ("send tcp:h:1 --guest ", ["dir:", "synthetic:", "qemu:"]),
        ("send tcp:h:1 --guest dir:", ["saved/"]),
        ("send tcp:h:1 --guest=dir:s", ["saved/"]),
        ("send tcp:h:1 --max-b", ["--max-bandwidth"]),
        ("send tcp:h:1 --tracker d", ["digests"]),
        ("convert a b --to libvirt:g", ["gzip"]),
    ],
)
def test_bash(line: str, found: list[str], folder: Path) -> None:
    """Broken: a user would have to look up and type what the shell could have known."""
    assert offered(line, folder) == found


@pytest.mark.parametrize("line", ["dump ", "verify x --against ", "convert ", "ctl "])
def test_files_are_completed_by_the_shell(line: str, folder: Path) -> None:
    """Broken: the names of streams would have to be typed."""
    words = {"COMP_LINE": f"vmferry {line}", "_VMFERRY_COMPLETE": "bash_complete"}
    ran = subprocess.run(
        [sys.executable, "-m", "vmferry"],
        cwd=folder,
        env={**os.environ, **words},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ran.stdout == "file,\n"
