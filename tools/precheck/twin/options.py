"""Says what a twin has in place of the options of a QEMU: the same devices, nothing of the host.

Only options that are known to be harmless are taken over, so that a twin can run beside a running
QEMU: it opens no disk, no memory file, no network, no socket, no log, and no device of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from ...console.failure import CommandError
from .disks import Nodes, drive
from .values import compose, parse

_KEPT = frozenset(
    (
        *("M", "machine", "m", "smp", "cpu", "accel", "boot", "vga", "usbdevice", "rtc", "L"),
        *("bios", "kernel", "append", "initrd", "dtb", "global", "numa", "smbios", "fw_cfg"),
        *("acpitable", "uuid", "icount", "set", "compat", "g", "name", "k", "shim"),
    )
)
"""The options with a value that a twin has, too."""
_KEPT_FLAGS = frozenset(
    (
        *("enable-kvm", "no-hpet", "no-acpi", "nodefaults", "no-user-config", "usb"),
        *("nouserconfig", "no-fd-bootchk", "win2k-hack", "old-param", "semihosting"),
    )
)
"""The options without a value that a twin has, too."""
_LEFT_OUT = frozenset(
    (
        *("incoming", "loadvm", "pidfile", "D", "d", "trace", "runas", "chroot", "sandbox", "msg"),
        *("monitor", "qmp", "qmp-pretty", "mon", "display", "vnc", "spice", "gdb", "overcommit"),
        *("action", "watchdog-action", "mem-path", "add-fd", "run-with", "debugcon"),
        *("realtime", "tb-size", "echr", "dfilter", "seed", "plugin"),
    )
)
"""The options with a value that change nothing of what a guest saves."""
_LEFT_OUT_FLAGS = frozenset(
    (
        *("S", "s", "daemonize", "no-shutdown", "no-reboot", "snapshot", "nographic", "sdl"),
        *("mem-prealloc", "full-screen", "alt-grab", "ctrl-grab", "no-quit", "preconfig"),
        *(
            "enable-fips",
            "enable-sync-profile",
            "singlestep",
            "async-teardown",
            "perfmap",
            "jitdump",
        ),
    )
)
"""The options without a value that change nothing of what a guest saves."""
_OF_THE_HOST = (
    *("vfio", "vhost", "usb-host", "scsi-generic", "scsi-block", "tpm-", "ivshmem-doorbell"),
    *("u2f-passthru", "ccid-card-emulated", "xen-", "nvme-ns-passthru", "x-vfio", "iommufd"),
)
"""The beginnings of the names of devices that take something of the host, or a process there."""
_OBJECTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "memory-backend-ram": ("memory-backend-ram", ("size",)),
    "memory-backend-file": ("memory-backend-ram", ("size",)),
    "memory-backend-memfd": ("memory-backend-ram", ("size",)),
    "memory-backend-shm": ("memory-backend-ram", ("size",)),
    "rng-random": ("rng-builtin", ()),
    "rng-builtin": ("rng-builtin", ()),
    "rng-egd": ("rng-builtin", ()),
    "iothread": ("iothread", ()),
    "throttle-group": ("throttle-group", ()),
    "can-bus": ("can-bus", ()),
    "cryptodev-backend-builtin": ("cryptodev-backend-builtin", ("queues",)),
}
"""The objects that a twin has in place of others, and the properties that they keep."""
_OBJECTS_LEFT_OUT = (
    "secret",
    "tls-",
    "auth",
    "input-",
    "filter-",
    "colo-",
    "pr-manager",
    "thread-",
)
"""The beginnings of the names of objects that change nothing of what a guest saves."""


_OF_NETWORK = ("id", "model", "mac", "macaddr", "addr", "netdev", "name", "vectors")
"""The properties of -net and -nic that belong to the guest's device."""


class TwinError(CommandError):
    """Raised if a QEMU like the given one cannot be started beside it; the message is one line."""


Words: TypeAlias = "list[str]"
Replace: TypeAlias = Callable[[str], Words]
"""Function that returns what a twin has in place of an option with this value."""


def twin_options(words: Sequence[str]) -> Words:
    """Return the options of a twin for those of a QEMU, without its program. Raises TwinError."""
    found: Words = []
    replaced = {**_REPLACED, "blockdev": _blockdev(Nodes())}
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            found += ["-drive", drive({"file": word, "index": "0", "media": "disk"})]
            continue
        name = word.removeprefix("-").removeprefix("-")
        if name in _KEPT_FLAGS:
            found.append(f"-{name}")
        elif name not in _LEFT_OUT_FLAGS:
            value = next(rest, None)
            if value is None:
                raise TwinError(f"{word}: vmferry does not know this option of a QEMU")
            found += _with_value(name, value, replaced)
    return found


def _with_value(name: str, value: str, replaced: Mapping[str, Replace]) -> Words:
    if name in _KEPT:
        return [f"-{name}", value]
    if name in _LEFT_OUT:
        return []
    replace = replaced.get(name)
    if replace is None:
        raise TwinError(
            f"-{name}: vmferry does not know whether a second QEMU may have this option; leave it"
            " out of a command line for B"
        )
    try:
        return replace(value)
    except ValueError as error:
        raise TwinError(f"-{name} {value}: {error}") from None


def _device(value: str) -> Words:
    name = parse(value, "driver").get("driver", "")
    if name.startswith(_OF_THE_HOST):
        raise TwinError(
            f"-device {name}: it belongs to one QEMU alone, so vmferry cannot start a second one"
            " with it; compare with a stream of such a guest"
        )
    return ["-device", value]


def _object(value: str) -> Words:
    properties = parse(value, "qom-type")
    kind = properties.get("qom-type", "")
    if kind.startswith(_OBJECTS_LEFT_OUT):
        return []
    if kind not in _OBJECTS:
        raise TwinError(f"-object {kind}: vmferry does not know whether a second QEMU may have it")
    other, kept = _OBJECTS[kind]
    return ["-object", _compose_kept(other, properties, ("id", *kept))]


def _compose_kept(first: str, properties: Mapping[str, str], names: Sequence[str]) -> str:
    kept = compose({name: properties[name] for name in names if name in properties})
    return f"{first},{kept}" if kept else first


def _chardev(value: str) -> Words:
    return ["-chardev", _compose_kept("null", parse(value, "backend"), ("id",))]


def _serial(option: str) -> Replace:
    def replace(value: str) -> Words:
        kept = value if value == "none" or value.startswith("chardev:") else "null"
        return [option, kept]

    return replace


def _netdev(value: str) -> Words:
    properties = parse(value, "type")
    if properties.get("type") == "user":
        # A user network has a section of its own.
        return ["-netdev", _compose_kept("user", properties, ("id",))]
    return ["-netdev", _compose_kept("hubport,hubid=0", properties, ("id",))]


def _net(option: str) -> Replace:
    def replace(value: str) -> Words:
        properties = parse(value, "type")
        kind = properties.pop("type", "")
        if kind not in ("none", "user", "nic"):
            if option == "-net":
                return []
            kind = "hubport,hubid=0"
        return [option, _compose_kept(kind, properties, _OF_NETWORK)]

    return replace


def _audio(option: str) -> Replace:
    def replace(value: str) -> Words:
        properties = parse(value, "driver")
        return [option, _compose_kept("none", properties, ("id", "model"))]

    return replace


def _filesystem(option: str) -> Replace:
    def replace(value: str) -> Words:
        properties = parse(value, "fsdriver")
        return [option, _compose_kept("synth", properties, ("id", "mount_tag"))]

    return replace


def _disk(**properties: str) -> Replace:
    return lambda value: ["-drive", drive({"file": value, **properties})]


def _drive(value: str) -> Words:
    return ["-drive", drive(parse(value, "file"))]


def _blockdev(nodes: Nodes) -> Replace:
    return lambda value: ["-blockdev", nodes.backend(parse(value, "driver"))]


def _hard_disks() -> Iterator[tuple[str, Replace]]:
    for index, name in enumerate(("hda", "hdb", "hdc", "hdd")):
        yield name, _disk(index=str(index), media="disk")
    for index, name in enumerate(("fda", "fdb")):
        yield name, _disk(index=str(index), **{"if": "floppy"})


_REPLACED: Mapping[str, Replace] = {
    "device": _device,
    "object": _object,
    "chardev": _chardev,
    "serial": _serial("-serial"),
    "parallel": _serial("-parallel"),
    "netdev": _netdev,
    "net": _net("-net"),
    "nic": _net("-nic"),
    "audiodev": _audio("-audiodev"),
    "audio": _audio("-audio"),
    "fsdev": _filesystem("-fsdev"),
    "virtfs": _filesystem("-virtfs"),
    "drive": _drive,
    "cdrom": _disk(index="2", media="cdrom"),
    "sd": _disk(index="0", **{"if": "sd"}),
    "mtdblock": _disk(index="0", **{"if": "mtd"}),
    "pflash": _disk(**{"if": "pflash"}),
    **dict(_hard_disks()),
}
"""The options with a value that a twin has in another form."""
