"""Outputs that cannot be written: the error names them, and nothing half written stays behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import streams
from tests.patience import PATIENCE, wait_until
from tests.protocol.kinds import KINDS

VMFERRY = [sys.executable, "-m", "vmferry.tools"]
LIMIT = 256 << 10
"""Bytes of the largest file: less than the RAM of the guest, more than its stream."""

EXTRACTIONS = {
    "raw": ["extract", "-", "-o", "{out}"],
    "elf": ["extract", "-", "-o", "{out}", "--format", "elf"],
    "lime": ["extract", "-", "-o", "{out}", "--format", "lime"],
    "all": ["extract", "-", "-o", "{out}", "--all"],
}
CONVERSIONS = {
    "plain": ["convert", "-", "{out}", "--to", "plain"],
    "zstd": ["convert", "-", "{out}", "--to", "zstd"],
    "mapped-ram": ["convert", "-", "{out}", "--to", "mapped-ram"],
}


def run_limited(arguments: list[str], feed: bytes, size: int) -> subprocess.CompletedProcess[bytes]:
    """Run `vmferry`, which may write no file of more than `size` bytes."""
    return subprocess.run(
        [*VMFERRY, *arguments],
        input=feed,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


@pytest.mark.parametrize("kind", [*EXTRACTIONS, *CONVERSIONS])
def test_file_too_large(tmp_path: Path, kind: str) -> None:
    """Broken: an error of the output would be told of the input, or half of it be left."""
    out, size = tmp_path / "out", 4096 if kind in CONVERSIONS else LIMIT
    arguments = [word.format(out=out) for word in {**EXTRACTIONS, **CONVERSIONS}[kind]]
    ran = run_limited(arguments, streams.WHOLE, size)
    shown = f"{out}/000-pc.ram" if kind == "all" else out
    assert (ran.returncode, ran.stderr.decode()) == (1, f"vmferry: {shown}: File too large\n")
    assert os.listdir(tmp_path) == []


def test_disk_too_large(tmp_path: Path) -> None:
    """Broken: an error of a disk's image would be told of the input."""
    out = tmp_path / "out"
    feed = streams.to_bytes(KINDS["block"])
    ran = run_limited(["extract", "-", "--disks", str(out)], feed, LIMIT)
    assert ran.returncode == 1
    assert ran.stderr.decode().startswith(f"vmferry: {out}/000-")
    assert ran.stderr.decode().endswith(": File too large\n")
    assert os.listdir(tmp_path) == []


def test_full_disk(vmferry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: an error that comes in the middle of an image would be told of the input."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = vmferry.folder / "folder"
    folder.mkdir()
    path = vmferry.write("stream", streams.WHOLE)
    monkeypatch.setattr(os, "pwrite", full)
    ran = vmferry.call("extract", path, "-o", str(folder / "out"))
    assert ran.output == f"vmferry: {folder}/out: No space left on device\n"
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "arguments", [["extract", "-", "-o", "{out}"], ["convert", "-", "{out}", "--to", "plain"]]
)
def test_nothing_is_overwritten(vmferry: Any, arguments: list[str]) -> None:
    """Broken: a mistyped name would cost the user a file."""
    out = Path(vmferry.write("out", b"older"))
    words = [word.format(out=out) for word in arguments]
    ran = vmferry.call(*words, feed=streams.WHOLE)
    assert ran.exit_code == 2
    assert ran.output.endswith(f"{out} exists already: name another one, or overwrite it with -f\n")
    assert out.read_bytes() == b"older"
    assert vmferry.call(*words, "-f", feed=streams.WHOLE).exit_code == 0
    assert out.stat().st_size > len(b"older")


@pytest.mark.parametrize("command", ["verify", "diff"])
def test_memory_too_small(vmferry: Any, command: str) -> None:
    """Broken: what is wrong with our own memory would be told of the stream."""
    path = vmferry.write("stream", streams.WHOLE)
    against = [path] if command == "diff" else ["--against", path]
    ran = run_limited([command, path, *against], b"", LIMIT)
    told = "vmferry: RAM block pc.ram, in memory: File too large\n"
    assert (ran.returncode, ran.stderr.decode()) == (1, told)


@pytest.mark.parametrize("kind", ["plain", "gzip", "libvirt"])
def test_full_standard_output(vmferry: Any, kind: str) -> None:
    """Broken: an error of the output would be told of the input, or told twice."""
    xml = ["--xml", vmferry.write("xml", b"<domain/>")] if kind == "libvirt" else []
    # It fits into a buffer.
    feed = streams.to_bytes([*streams.opening(), *streams.closing()])
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [*VMFERRY, "convert", "-", "-", "--to", kind, *xml],
            input=feed,
            stdout=full,
            env=environment,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    told = "vmferry: standard output: No space left on device\n"
    assert (ran.returncode, ran.stderr.decode()) == (1, told)


@pytest.mark.parametrize("name", ["stream", "link", "hard", "-"])
@pytest.mark.parametrize("command", ["extract", "convert"])
def test_the_stream_is_not_replaced(vmferry: Any, command: str, name: str) -> None:
    """Broken: a slip of the hand would cost the stream itself."""
    path = vmferry.write("stream", streams.WHOLE)
    (vmferry.folder / "link").symlink_to(path)
    (vmferry.folder / "hard").hardlink_to(path)
    out = path if name == "-" else str(vmferry.folder / name)
    options = ["-o", out] if command == "extract" else [out, "--to", "zstd"]
    source = "-" if name == "-" else path
    with open(path, "rb") as stdin:
        ran = subprocess.run(
            [*VMFERRY, command, source, *options], stdin=stdin, capture_output=True, check=False
        )
    assert ran.returncode == 2
    assert f"{out} is the stream itself" in ran.stderr.decode()
    assert Path(path).read_bytes() == streams.WHOLE


@pytest.mark.parametrize("options", [["-o", "{out}"], ["-o", "{out}", "--all"]])
def test_two_outputs_of_one_name(vmferry: Any, options: list[str]) -> None:
    """Broken: one output would take the place of another, and the command fail when it ends."""
    out = vmferry.folder / "out"
    words = [word.format(out=out) for word in options]
    feed = streams.WHOLE
    ran = vmferry.run("extract", "-", *words, "--devices", f"{out.parent}/./out", feed=feed)
    assert ran.error == f"{out}: two outputs of this name"
    assert not out.exists()


def test_a_link_leads_to_the_output(vmferry: Any) -> None:
    """Broken: a link would be replaced, and the file that it leads to stay as it was."""
    target, link = vmferry.folder / "folder" / "target", vmferry.folder / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    ran = vmferry.call("convert", "-", str(link), "--to", "plain", feed=streams.WHOLE)
    assert ran.exit_code == 0, ran.output
    assert link.is_symlink()
    assert target.read_bytes() == streams.WHOLE
    assert os.listdir(target.parent) == ["target"]


def test_no_image_in_standard_output(vmferry: Any) -> None:
    """Broken: a file named - would be there, and nobody find it."""
    ran = vmferry.call("extract", "-", "-o", "-", feed=streams.WHOLE)
    assert ran.exit_code == 2
    assert "-o needs a file" in ran.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_when_it_is_told_to_end(number: signal.Signals, tmp_path: Path) -> None:
    """Broken: a part of an image, as large as the guest, would stay in a hidden file."""
    pages = streams.ram_part(streams.page_run(0, range(256)))
    begun = streams.to_bytes([*streams.opening(), *(event for _ in range(6) for event in pages)])
    with subprocess.Popen(
        [*VMFERRY, "extract", "-", "-o", tmp_path / "out"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(begun)
        wait_until(lambda: os.listdir(tmp_path))
        begun_files = os.listdir(tmp_path)
        status = _end(process, number)
    assert len(begun_files) == 1
    assert status == 128 + number
    assert os.listdir(tmp_path) == []


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> int:
    """Return the exit status.

    A signal that arrives just before the command waits for input is seen only behind it; the next
    one is not.
    """
    for _ in range(10):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(3)
    process.kill()
    raise TimeoutError("it does not end")
