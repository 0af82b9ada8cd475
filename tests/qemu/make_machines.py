"""Makes `tools/machines.json`: the memory of every machine that the installed QEMUs know.

    VMFERRY_QEMU10=... python -m tests.qemu.make_machines

Each machine is started, stopped at its first instruction, and asked for its RAM blocks (`info
ramblock`) and where it has them (`info mtree -f`); the newest of each family with several sizes of
memory. Some machines are asked again with each of their switches on, and with each device that a
user can add, for the RAM blocks that these bring.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import Any

TABLE = Path(__file__).parents[2] / "tools" / "machines" / "machines.json"
OTHER_NAMES = ("microvm", "amd64", "arm64", "armel", "armhf", "ppc64le")
"""Ends of names that Debian gives the same programs."""
PC = ("i386", "x86_64")
"""Their memory is split around a hole by rules that no table shows: `main_ram` has them."""
LIMIT = 60
"""Seconds that one start and its questions may take."""
FLASH_SIZES_MIB = (16, 32)
"""Sizes in MiB of flash files, for machines that want just one size."""
SIZES_MIB = (64, 200, 768, 1536, 3072, 6144)
DEVICES = ("x86_64", "sparc", "s390x")
"""Targets whose devices are added: those of the others are among them, or no user adds them."""
HOSTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "x86_64": (("isapc",), ("q35",)),
    "aarch64": (("virt", "-cpu", "max"), ("sbsa-ref",)),
    "ppc64": (("pseries",), ("g3beige",)),
    "riscv64": (("virt",),),
    "s390x": (("s390-ccw-virtio",),),
    "sparc": (("SS-5",),),
}
"""Machines that switches are turned on of, by target."""

_BLOCK = re.compile(r"^ *(\S.*?) +\d+ [KMG]iB +0x\w+ +0x(\w+) +0x\w+", re.M)
_RANGE = re.compile(
    r"^ +(\w{16})-(\w{16}) \(prio -?\d+, (\w[\w ]*)\): (.*?)(?: @(\w{16}))?(?: KVM)?$", re.M
)
_VERSION = re.compile(r"-\d[\w.]*$")


@dataclass(frozen=True)
class Program:
    """A QEMU of one target: `folder` is where one beside the system's own was unpacked."""

    target: str
    folder: str | None

    @property
    def command(self) -> list[str]:
        """Return the beginning of the program's command line."""
        if self.folder is None:
            return [f"/usr/bin/qemu-system-{self.target}"]
        data = f"{self.folder}/usr/share"
        program = f"{self.folder}/usr/bin/qemu-system-{self.target}"
        return [program, "-L", f"{data}/qemu", "-L", f"{data}/seabios"]

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment with which a QEMU finds its libraries, and no modules of another
        version.
        """
        libraries = f"{self.folder}/usr/lib/x86_64-linux-gnu"
        found = {"LD_LIBRARY_PATH": libraries, "QEMU_MODULE_DIR": f"{libraries}/qemu"}
        return {} if self.folder is None else found


@dataclass
class Layout:
    """Layout of one start: sizes of RAM blocks, and ranges (address, size, name, offset)."""

    blocks: dict[str, int]
    ranges: list[tuple[int, int, str, int]] = field(default_factory=list)


def programs() -> list[Program]:
    """Return the QEMUs of every target, of both versions."""
    found = []
    for folder in (None, os.environ["VMFERRY_QEMU10"]):
        for path in sorted(Path(f"{folder or ''}/usr/bin").glob("qemu-system-*")):
            target = path.name.removeprefix("qemu-system-")
            if not target.endswith(OTHER_NAMES):
                found.append(Program(target, folder))
    return found


class RefusedError(Exception):
    """A QEMU does not start, or does not do what it is asked to."""


class Monitored:
    """A QEMU that waits at its first instruction, with its monitor at its standard input."""

    def __init__(self, program: Program, *options: str) -> None:
        fixed = ("-accel", "tcg", "-display", "none", "-nodefaults", "-S", "-qmp", "stdio")
        self._process = subprocess.Popen(
            [*program.command, *fixed, *options],
            env={**os.environ, **program.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        # Some devices wait for ever for what is behind them.
        self._end = Timer(LIMIT, self._process.kill)
        self._end.start()
        try:
            self._read("QMP")
            self.ask("qmp_capabilities")
        except RefusedError:
            self.stop()
            raise

    def ask(self, name: str, **arguments: Any) -> Any:
        """Give a command; return the answer. Raises RefusedError."""
        assert self._process.stdin is not None
        try:
            text = json.dumps({"execute": name, "arguments": arguments})
            self._process.stdin.write(text.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise RefusedError(name) from error
        return self._read("return")

    def ask_people(self, line: str) -> str:
        """Give a command of the monitor for people; return its lines. Raises RefusedError."""
        text: str = self.ask("human-monitor-command", **{"command-line": line})
        return text.replace("\r", "")

    def _read(self, key: str) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if key in answer:
                return answer[key]
            if "error" in answer:
                raise RefusedError(answer["error"]["desc"])
        raise RefusedError("it has ended")

    def stop(self) -> None:
        """Kill the QEMU, which has nothing to lose."""
        self._end.cancel()
        self._process.kill()
        with suppress(OSError):
            self._process.communicate()


@contextmanager
def started(program: Program, *options: str) -> Iterator[Monitored]:
    """Start a QEMU. Raises RefusedError if it does not start."""
    guest = Monitored(program, *options)
    try:
        yield guest
    finally:
        guest.stop()


def layout_of(guest: Monitored) -> Layout:
    """Return the layout of a guest."""
    listed = guest.ask_people("info ramblock")
    found = Layout({name: int(size, 16) for name, size in _BLOCK.findall(listed)})
    views = guest.ask_people("info mtree -f").split("FlatView #")
    # Some machines have RAM in the views of their processors alone.
    for kind in ("memory", "cpu-memory-0", "cpu-secure-memory-0"):
        view = next((view for view in views if f'AS "{kind}"' in view), "")
        for start, end, sort, name, offset in _RANGE.findall(view):
            if sort == "ram":
                address = int(start, 16)
                size = int(end, 16) + 1 - address
                found.ranges.append((address, size, name, int(offset or "0", 16)))
        if found.ranges:
            break
    return found


def ways_to_start(blob: str) -> list[tuple[str, ...]]:
    """Return options, one set of which each machine starts with."""
    return [
        (),
        ("-kernel", blob),
        ("-bios", blob),
        ("-audiodev", "none,id=a", "-machine", "audiodev=a"),
        ("-machine", "cap-htm=off"),
        *(
            ("-drive", f"if=pflash,format=raw,file={blob}{size or ''},readonly=on")
            for size in (None, *FLASH_SIZES_MIB)
        ),
    ]


def ask_machine(program: Program, name: str, blob: str, *, sizes: bool) -> list[Layout]:
    """Return the layout with the machine's own size of memory, then with others that it takes."""
    for way in ways_to_start(blob):
        try:
            with started(program, "-machine", name, *way) as guest:
                found = [layout_of(guest)]
        except RefusedError:
            continue
        if sizes and program.target not in PC:
            found += other_sizes(program, name, way)
        return found
    return []


def other_sizes(program: Program, name: str, way: tuple[str, ...]) -> list[Layout]:
    """Return those of these sizes that the machine takes."""
    found = []
    for size in SIZES_MIB:
        try:
            with started(program, "-machine", name, "-m", str(size), *way) as guest:
                found.append(layout_of(guest))
        except RefusedError:
            continue
    return found


def memory_of(ram: str | None, layouts: list[Layout]) -> list[str]:
    """Return the names of the blocks that are memory: those that the machine names, else the
    largest.
    """
    first = layouts[0]
    if ram in first.blocks:
        return [ram]
    mapped = {name: first.blocks[name] for _, _, name, _ in first.ranges if name in first.blocks}
    most = max(mapped.values(), default=0)
    return [name for name, size in mapped.items() if size == most]


def windows_of(memory: str, layouts: list[Layout]) -> list[list[int | None]] | None:
    """Return addresses and lengths that memory fills, one behind the other; the last has none.

    The lowest address of each byte is its address. None: sizes have nothing in common.
    """
    found: list[list[int | None]] = []
    for layout in sorted(layouts, key=lambda layout: layout.blocks.get(memory, 0)):
        pieces = sorted(r for r in layout.ranges if r[2] == memory)
        windows: list[list[int]] = []
        at, size = 0, layout.blocks.get(memory, 0)
        while at < size:
            here = next(((a, s, o) for a, s, _, o in pieces if o <= at < o + s), None)
            if here is None:
                return None
            address, length = here[0] + at - here[2], here[2] + here[1] - at
            if windows and windows[-1][0] + windows[-1][1] == address:
                windows[-1][1] += length
            else:
                windows.append([address, length])
            at += length
        if not windows:
            continue
        ended: list[list[int | None]] = [[*window] for window in windows]
        ended[-1][1] = None
        # A larger memory fills what a smaller one does.
        if any(ours[0] != theirs[0] for ours, theirs in zip(found, ended, strict=False)):
            return None
        found = ended if len(ended) >= len(found) else found
    return found or None


def known_windows(memory: str, layouts: list[Layout]) -> list[list[int | None]] | None:
    """Return the windows of `windows_of`; where larger sizes move them, up to these sizes only."""
    ordered = sorted(layouts, key=lambda layout: layout.blocks.get(memory, 0))
    for count in range(len(ordered), 0, -1):
        found = windows_of(memory, ordered[:count])
        if found is not None and count < len(ordered):
            known = ordered[count - 1].blocks.get(memory, 0)
            found[-1][1] = known - sum(length or 0 for _, length in found)
        if found is not None:
            return found
    return None


def survey(program: Program, blob: str) -> dict[str, dict[str, Any]]:
    """Return an entry for each machine of a program."""
    with started(program, "-machine", "none") as guest:
        listed = guest.ask("query-machines")
    found: dict[str, dict[str, Any]] = {}
    newest: dict[str, str] = {}
    for name in sorted((each["name"] for each in listed), key=version_of):
        newest[_VERSION.sub("", name)] = name

    def ask(machine: dict[str, Any]) -> None:
        name = machine["name"]
        sizes = newest[_VERSION.sub("", name)] == name
        layouts = ask_machine(program, name, blob, sizes=sizes)
        if not layouts:
            return
        memory = memory_of(machine.get("default-ram-id"), layouts)
        others = sorted({name for layout in layouts for name in layout.blocks} - {*memory})
        windows = known_windows(memory[0], layouts) if len(memory) == 1 else None
        entry = {"memory": memory, "others": [name for name in others if "/" not in name]}
        found[name] = entry if program.target in PC else {**entry, "ram": windows}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, [each for each in listed if each["name"] != "none"]))
    for name, entry in found.items():
        # One that shows the same with its own size of memory is as the newest.
        other = found.get(newest[_VERSION.sub("", name)], entry)
        if entry.get("ram") and other.get("ram") and entry["ram"][0][0] == other["ram"][0][0]:
            entry["ram"] = other["ram"]
    missing = sorted({each["name"] for each in listed} - {*found, "none"})
    print(program.target, program.folder, len(found), "without", missing, flush=True)
    return found


def version_of(name: str) -> list[int]:
    """Return the numbers in the name of a machine."""
    return [int(number) for number in re.findall(r"\d+", name)]


def further_blocks(program: Program, machine: tuple[str, ...]) -> set[str]:
    """Return the RAM blocks that switches and devices add, except those with a device's path."""
    options = ("-machine", *machine)
    with started(program, *options) as guest:
        base = {*layout_of(guest).blocks}
        switches = guest.ask("qom-list", path="/machine")
        devices = []
        # One that was unpacked lacks modules, and dies of the list of its devices.
        if program.target in DEVICES and program.folder is None:
            devices = guest.ask("qom-list-types", implements="device", abstract=False)
    found: set[str] = set()

    def add(what: tuple[str, str]) -> None:
        try:
            with started(program, *options, *what) as guest:
                found.update({*layout_of(guest).blocks} - base)
        except RefusedError:
            # It wants a property, or another machine.
            return

    with ThreadPoolExecutor(4) as pool:
        names = [each["name"] for each in switches if each["type"] == "bool"]
        list(pool.map(add, [("-machine", f"{name}=on") for name in names]))
        list(pool.map(add, [("-device", device["name"]) for device in devices]))
    return {name for name in found if "/" not in name}


def main() -> None:
    """Write the table."""
    entries: dict[str, set[tuple[str, str]]] = defaultdict(set)
    versions: set[str] = set()
    # A TPM takes an emulator.
    devices: set[str] = {"tpm-crb-cmd", "tpm-ppi"}
    with tempfile.TemporaryDirectory() as folder:
        blob = f"{folder}/blob"
        Path(blob).write_bytes(bytes(1 << 16))
        for size in FLASH_SIZES_MIB:
            with open(f"{blob}{size}", "wb") as flash:
                flash.truncate(size << 20)
        for program in programs():
            with started(program, "-machine", "none") as guest:
                version = guest.ask("query-version")
                versions.add(version["package"] or str(version["qemu"]))
            for name, entry in survey(program, blob).items():
                entries[json.dumps(entry)].add((name, program.target))
            for machine in HOSTS.get(program.target, ()):
                devices |= further_blocks(program, machine)
    machines = []
    for text, members in entries.items():
        families: dict[tuple[str, tuple[str, ...]], set[str]] = defaultdict(set)
        for name in {name for name, _ in members}:
            targets = tuple(sorted(target for other, target in members if other == name))
            families[_VERSION.sub("", name), targets].add(name)
        for (_, targets), names in families.items():
            ids = {"names": " ".join(sorted(names)), "targets": " ".join(targets)}
            machines.append({**ids, **json.loads(text)})
    machines.sort(key=lambda entry: (entry["targets"], entry["names"]))
    lines = ",\n".join(json.dumps(entry) for entry in machines)
    head = json.dumps({"qemu": sorted(versions), "devices": sorted(devices)})
    TABLE.write_text(f'{head[:-1]}, "machines": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
