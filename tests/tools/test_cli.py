"""The command line as such, and migrations that it runs in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
from vmferry.tools.cli import COMMANDS, main
from vmferry.tools.console.types import Size

from tests import streams
from tests.patience import PATIENCE

COMMAND = [sys.executable, "-m", "vmferry.tools.cli"]
SCHEMES = ("tcp:", "unix:", "exec:", "fd:", "file:")


def after(*arguments: str, code: str) -> str:
    """Return what `code` prints in the process of a command, after that has ended."""
    run = (
        f"import gc, sys, vmferry.tools.__main__ as begin; sys.argv = {['vmferry', *arguments]}\n"
        f"try: begin.main()\nexcept SystemExit: print(); print({code})"
    )
    ran = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()[-1]


def test_no_threads_of_blas() -> None:
    """Broken: each process of a migration would spend processor time on numpy's idle threads."""
    threads = "__import__('numpy') and len(__import__('os').listdir('/proc/self/task'))"
    assert after("--version", code=threads) == "1"


def test_help_imports_no_command() -> None:
    """Broken: `vmferry --help` would take the time to import all that any command needs."""
    heavy = ("numpy", "construct", "zstandard", "rich", "asyncio", "multiprocessing", "psutil")
    names = f"[name for name in sys.modules if 'commands' in name or name in {heavy}]"
    for option in ("--help", "nonsense"):
        assert after(option, code=names) == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_every_option_once(name: str, vmferry: Any) -> None:
    """Broken: an option that is in a group of its own would be missing, or be there twice."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    shown = vmferry.call(name, "--help").stdout.partition("\nOptions:")[2]
    for option in (param for param in command.params if isinstance(param, click.Option)):
        assert len(re.findall(rf"^  (-\w, )?{option.opts[-1]}\b(?!-)", shown, re.MULTILINE)) == 1
    # The text explains arguments; click 8.5 would list them among the options, without a word.
    assert not re.search(r"^  [\[A-Z]", shown.partition("\n\n")[0], re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_size_is(name: str, vmferry: Any) -> None:
    """Broken: nobody would know whether 512 is bytes, and whether 1G is a power of 1000."""
    shown = " ".join(vmferry.call(name, "--help").stdout.split())
    assert (" SIZE " in shown.partition("Options:")[2]) == (Size.units in shown)


def test_migrations_import_no_more_than_they_need() -> None:
    """Broken: each migration would begin later, and take memory for what nobody sees."""
    names = "{name for name in sys.modules if name in ('rich', 'asyncio', 'psutil', 'email')}"
    for command in ("send", "receive"):
        assert after(command, "--help", code=names) == "set()"


@pytest.mark.parametrize("name", COMMANDS)
def test_list_of_commands(name: str) -> None:
    """Broken: `vmferry --help` would say something else than the command's own help."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help is not None
    assert " ".join(command.help.split("\n\n")[0].split()) == COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples(name: str) -> None:
    """Broken: a command's help would show no example, or one with an option that is not there."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.epilog is not None
    lines = command.epilog.splitlines()[2:]
    assert lines
    for line in lines:
        program, called, *arguments = shlex.split(line)
        assert (program, called) == ("vmferry", name)
        context = click.Context(command, info_name=name)
        command.make_parser(context).parse_args(arguments)


def test_garbage_is_collected(tmp_path: Path) -> None:
    """Broken: a command's memory would grow for ever, or the collector would go through modules."""
    assert after("verify", str(tmp_path), code="gc.isenabled(), gc.get_freeze_count() > 1000") == (
        "True True"
    )


def test_version(vmferry: Any) -> None:
    """Broken: nobody could say which version misbehaves."""
    for option in ("--version", "-V"):
        ran = vmferry.run(option)
        assert ran.status == 0
        assert version("vmferry") in ran.out


def test_quiet_and_verbose(vmferry: Any) -> None:
    """Broken: a script would get lines that it has no use for, or a person none that explain."""
    whole, small = vmferry.write("whole", streams.WHOLE), vmferry.write("small", streams.SMALL)
    assert vmferry.call("verify", "-q", whole).output == ""
    assert vmferry.call("extract", "-q", whole, "-o", f"{vmferry.folder}/ram").output == ""
    ran = vmferry.call("diff", "-q", whole, small)
    assert (ran.exit_code, ran.output) == (1, "")
    send = ("send", f"file:{vmferry.folder}/sent", "--no-return-path", "--guest", "synthetic:8M")
    assert vmferry.run(*send, "-q").err == ""
    assert "INFO vmferry.sender.coordinator: none -> setup\n" in vmferry.run(*send, "-qv").err
    receive = ("receive", f"file:{vmferry.folder}/sent", "--guest", "synthetic:")
    assert vmferry.run(*receive, "-q").err == ""


def test_full_output() -> None:
    """Broken: a full disk behind `>` would end a command in a traceback."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        ran = subprocess.run(
            [*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    said = "vmferry: standard output: No space left on device\n"
    assert (ran.returncode, ran.stderr) == (1, said)


@pytest.mark.parametrize("command", ["send", "receive", "dump", "verify", "diff", "demo", "ctl"])
def test_help(command: str, vmferry: Any) -> None:
    """Broken: a command would not explain itself."""
    result = vmferry.call(command, "--help")
    assert result.exit_code == 0
    assert f" {command} [OPTIONS]" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["dump"],
        ["dump", "--nonsense", "x"],
        ["send", "file:x"],
        ["receive", "--guest", "dir:x"],
        ["receive", "file:x", "--guest", "dir:x", "--announce", "lo=1"],
        ["receive", "file:x", "--guest", "dir:x", "--announce", "lo", "--paused"],
        ["send", "file:x", "--guest", "dir:x", "--max-bandwidth", "9x"],
        ["send", "file:x", "--guest", "dir:x", "--max-bandwidth", "9" * 400],
        ["send", "file:x", "--guest", "dir:x", "--max-bandwidth", "9999999999T"],
        ["send", "file:x", "--guest", "dir:x", "--workers", "-1"],
        ["send", "file:x", "--guest", "dir:x", "--xbzrle-cache-size", "1M"],
        ["send", "file:x", "--guest", "dir:x", "--downtime-limit", "-1"],
        ["send", "file:x", "--guest", "dir:x", "--downtime-limit", "1" + "0" * 400],
    ],
)
def test_wrong_usage(arguments: list[str], vmferry: Any) -> None:
    """Broken: a script could not tell its own mistake from a failed migration."""
    result = vmferry.call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


GUEST = ("--guest", "synthetic:8M")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["recieve"], "No such command 'recieve'. Did you mean receive?"),
        (["frobnicate"], "No such command 'frobnicate'."),
        (
            ["send", "tcp:h:1", *GUEST, "--downtime-limit", "300ms"],
            "'300ms' is not an integer, such as 300",
        ),
        (
            ["send", "tcp:h:1", *GUEST, "--cpu-throttle-initial", "20"],
            "--cpu-throttle-initial needs --auto-converge",
        ),
        (
            ["send", "tcp:h:1", *GUEST, "--xbzrle-cache-size", "8M"],
            "--xbzrle-cache-size needs --xbzrle",
        ),
        (
            ["send", "tcp:h:1", *GUEST, "--multifd-channels", "2", "--compress", "zstd"],
            "use multifd-compression with multifd-channels",
        ),
    ],
)
def test_what_to_write_instead(arguments: list[str], told: str, vmferry: Any) -> None:
    """Broken: a small slip would send the user to the manual, or be ignored in silence."""
    ran = vmferry.call(*arguments)
    assert ran.exit_code == 2
    assert ran.output.splitlines()[-1].endswith(told)


def test_service_without_a_scheme(vmferry: Any) -> None:
    """Broken: the message would offer schemes that no QMP client can use."""
    ran = vmferry.call("serve", "--qmp", "a.sock", *GUEST)
    assert ran.output == "vmferry: a.sock: write unix:a.sock, or tcp:HOST:PORT\n"


def test_prefixes_of_other_commands(guest: Path, vmferry: Any) -> None:
    """Broken: what send and receive call `dir:` or `file:` would not be found by dump."""
    ran = vmferry.call("dump", f"dir:{guest}")
    assert f"not a stream: make one by vmferry send file:FILE --guest dir:{guest}" in ran.output
    path = vmferry.write("stream", b"QEVM")
    ran = vmferry.call("dump", f"file:{path}")
    assert ran.output == f"vmferry: file:{path}: a stream is named by its file alone: {path}\n"


@pytest.mark.parametrize("command", ["send", "receive"])
@pytest.mark.parametrize("uri", ["http://x", "nonsense", "tcp"])
def test_unknown_scheme(command: str, uri: str, vmferry: Any) -> None:
    """Broken: whoever mistypes a URI would not learn what there is."""
    guest = "synthetic:1M" if command == "send" else f"dir:{vmferry.folder}/guest"
    ran = vmferry.run(command, uri, "--guest", guest)
    assert ran.status == 1
    assert repr(uri) in ran.error
    assert all(scheme in ran.error for scheme in SCHEMES)
    assert not (vmferry.folder / "guest").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "dir: synthetic:"),
        ("dir:", "path"),
        ("synthetic:64Q", "'64Q'"),
        ("synthetic:1000", "1000"),
        ("synthetic:1M,nonsense=1", "dirty-rate"),
        ("synthetic:1M,zero=200%", "zero"),
        ("dir:" + "x" * 300, "too long"),
    ],
)
@pytest.mark.parametrize("command", ["send", "receive"])
def test_malformed_guest(command: str, text: str, told: str, vmferry: Any) -> None:
    """Broken: whoever mistypes a guest would get a traceback."""
    result = vmferry.call(command, "tcp:127.0.0.1:0", "--guest", text)
    assert result.exit_code == 1
    assert result.stderr.startswith("vmferry: ")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr


def test_guest_that_is_not_there(vmferry: Any) -> None:
    """Broken: sending nothing would look like success, or be a traceback."""
    result = vmferry.call("send", "tcp:127.0.0.1:1", "--guest", f"dir:{vmferry.folder}/none")
    assert result.exit_code == 1
    assert f"{vmferry.folder}/none: no guest here" in result.stderr
    assert not (vmferry.folder / "none").exists()


@pytest.mark.parametrize(
    ("command", "uri", "told"),
    [
        ("send", "tcp:127.0.0.1:1", "refused"),
        ("send", "tcp:nonsense", "HOST:PORT"),
        ("send", "unix:/nonexistent/x", "No such file"),
        ("send", "file:/nonexistent/x", "No such file"),
        ("send", "file:/dev/full", "No space left"),
        ("send", "exec:exit 3", ""),
        ("send", "fd:99", "fd:99"),
        ("receive", "unix:/nonexistent/x", "No such file"),
        ("receive", "file:/nonexistent/x", "/nonexistent/x: No such file"),
        ("receive", "file:/dev/null", "offset 0x0"),
        ("receive", "exec:exit 3", ""),
        ("receive", "fd:99", "fd:99"),
        ("receive", "tcp:192.0.2.1:0", "tcp:192.0.2.1:0"),
    ],
)
def test_channel_that_fails(command: str, uri: str, told: str, vmferry: Any) -> None:
    """Broken: a channel that cannot be opened, or breaks, would be a traceback."""
    guest = "synthetic:1M" if command == "send" else f"dir:{vmferry.folder}/guest"
    ran = vmferry.run(command, uri, "--guest", guest)
    assert ran.status == 1
    assert told in ran.error
    assert not (vmferry.folder / "guest").exists()


@pytest.fixture
def guest(vmferry: Any) -> Path:
    """Return a guest at rest, received from a stream."""
    path: Path = vmferry.folder / "guest"
    stream = vmferry.write("first", streams.SMALL)
    ran = vmferry.run("receive", f"file:{stream}", "--guest", f"dir:{path}")
    assert ran.status == 0, ran.err
    return path


def test_there_and_back(guest: Path, vmferry: Any) -> None:
    """Broken: a guest that is saved, sent and received again would not be the guest it was."""
    folder = vmferry.folder
    sent = vmferry.run("send", f"file:{folder}/second", "--guest", f"dir:{guest}")
    assert sent.status == 0, sent.err
    received = vmferry.run("receive", f"file:{folder}/second", "--guest", f"dir:{folder}/other")
    assert received.status == 0, received.err
    names = ("000-pc.ram", "001-%2From%40etc%2Facpi")
    for name, image in zip(names, streams.RAM.values(), strict=True):
        assert (guest / "ram" / name).read_bytes() == image
        assert (folder / "other" / "ram" / name).read_bytes() == image
    devices = {path.name: path.read_bytes() for path in (guest / "devices").iterdir()}
    again = {path.name: path.read_bytes() for path in (folder / "other" / "devices").iterdir()}
    assert again == devices
    checked = vmferry.call("verify", f"{folder}/second", f"--ram=pc.ram={guest}/ram/000-pc.ram")
    assert checked.exit_code == 0, checked.stderr


def test_figures_as_json(guest: Path, vmferry: Any) -> None:
    """Broken: a program could not learn how a migration went."""
    stream = f"file:{vmferry.folder}/second"
    sent = vmferry.run("send", stream, "--guest", f"dir:{guest}", "--json")
    assert sent.status == 0, sent.err
    figures = json.loads(sent.out)
    assert figures["status"] == "completed"
    assert figures["ram"]["remaining"] == 0
    ran = vmferry.run("receive", stream, "--guest", f"dir:{vmferry.folder}/other", "--json")
    assert ran.status == 0, ran.err
    received = json.loads(ran.out)
    assert received["status"] == "completed"
    assert received["ram"]["total"] == figures["ram"]["total"] == (1 << 20) + (32 << 10)
    assert received["ram"]["normal"] == figures["ram"]["normal"]
    assert os.path.getsize(f"{vmferry.folder}/second") == received["ram"]["transferred"]


def test_guest_stands_in_the_way(guest: Path, vmferry: Any) -> None:
    """Broken: receiving would overwrite the guest that is there."""
    before = {path: path.read_bytes() for path in guest.rglob("*") if path.is_file()}
    stream = vmferry.write("stream", streams.SMALL)
    ran = vmferry.run("receive", f"file:{stream}", "--guest", f"dir:{guest}")
    assert ran.status == 1
    assert f"{guest}: holds a guest already" in ran.error
    assert {path: path.read_bytes() for path in guest.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["{", "{}", '{"format": 99}'])
def test_damaged_guest(damage: str, guest: Path, vmferry: Any) -> None:
    """Broken: a guest.json that was edited by hand would be a traceback."""
    (guest / "guest.json").write_text(damage)
    result = vmferry.call("send", "file:/dev/null", "--guest", f"dir:{guest}")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"vmferry: {guest}/guest.json: not a guest: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("member", "value"),
    [("description", "not JSON"), ("ram_section_id", 1 << 40)],
)
def test_guest_that_cannot_be_written(member: str, value: Any, guest: Path, vmferry: Any) -> None:
    """Broken: a guest.json with values that fit no stream would be a traceback."""
    document = json.loads((guest / "guest.json").read_text())
    document[member] = value
    (guest / "guest.json").write_text(json.dumps(document))
    ran = vmferry.run("send", f"file:{vmferry.folder}/out", "--guest", f"dir:{guest}")
    assert ran.status == 1
    assert "process vmferry-" not in ran.error


@pytest.mark.parametrize(
    "uri", ["tcp:a..b:1", "fd:99999999999999999999", "file:/tmp/x,offset=99999999999999999999"]
)
def test_uri_that_the_system_cannot_take(uri: str, vmferry: Any) -> None:
    """Broken: an odd name or number in a URI would be a traceback."""
    ran = vmferry.run("send", uri, "--guest", "synthetic:1M")
    assert ran.status == 1
    assert ran.error


@pytest.mark.parametrize(
    ("size", "message"), [("1K", "smaller than page size"), ("1G", "exceeds guest RAM size")]
)
def test_impossible_cache(size: str, message: str, vmferry: Any) -> None:
    """Broken: a mistyped size would be a traceback."""
    uri, guest = f"file:{vmferry.folder}/out", "synthetic:1M,orphan=0"
    ran = vmferry.run("send", uri, "--guest", guest, "--xbzrle", "--xbzrle-cache-size", size)
    assert ran.status == 1
    assert ran.error.endswith(message)


@pytest.fixture
def sink() -> Iterator[socket.socket]:
    """Yield a destination that takes the connection and reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_cancels_sending(number: signal.Signals, sink: socket.socket) -> None:
    """Broken: Ctrl-C would end in tracebacks, and leave processes behind."""
    uri = f"tcp:127.0.0.1:{sink.getsockname()[1]}"
    command = [*COMMAND, "send", uri, "--guest", "synthetic:32M", "--max-bandwidth", "1M"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    with sink.accept()[0]:
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert process.communicate(timeout=PATIENCE)[1].splitlines()[-1] == "vmferry: cancelled"
    assert process.returncode == 1


def test_signal_cancels_receiving(tmp_path: Path) -> None:
    """Broken: a receiver that nobody sends to could not be ended, or would leave a guest."""
    command = [*COMMAND, "receive", "tcp:127.0.0.1:0", "--guest", f"dir:{tmp_path}/guest"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("listening on tcp:127.0.0.1:")
    process.terminate()
    assert process.communicate(timeout=PATIENCE)[1] == "vmferry: cancelled\n"
    assert process.returncode == 1
    assert not (tmp_path / "guest").exists()


def test_nobody_reads_the_progress(vmferry: Any) -> None:
    """Broken: `vmferry send ... 2>&1 | head -1` would fail the migration."""
    reading, writing = os.pipe()
    os.close(reading)
    uri = f"file:{vmferry.folder}/stream"
    # What is buffered when the reader goes fails a second time, at exit.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [*COMMAND, "send", uri, "--guest", "synthetic:1M"], stderr=writing, env=environment
    )
    os.close(writing)
    assert process.wait(PATIENCE) == 0
    assert vmferry.call("verify", f"{vmferry.folder}/stream").exit_code == 0


def test_demo(vmferry: Any) -> None:
    """Broken: the first thing that anybody tries would fail."""
    started = time.monotonic()
    ran = vmferry.run("demo", "--size", "64M", "--dirty-rate", "20M")
    assert ran.status == 0, ran.err
    assert "equal at switchover, 0 bad pages" in ran.out
    assert time.monotonic() - started < 60


def test_demo_of_nonsense(vmferry: Any) -> None:
    """Broken: a mistyped size would be a traceback, or leave the other side waiting."""
    ran = vmferry.run("demo", "--size", "1000")
    assert ran.status == 1
    assert "1000" in ran.error
