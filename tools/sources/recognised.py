"""Recognises files that are not migration streams by their first bytes, and advises what to do.

General libraries that know thousands of file types know few of those that users of virtual machines
have, and confuse disk images with embroidery files, so this module has its own table. Sources: the
documents of each format (ELF, pcap, pcapng, TLS 1.3 in RFC 8446, VMDK, VDI, VHDX, UEFI for GPT,
POSIX for tar), and files that their own tools made.
"""

from __future__ import annotations

from typing import NamedTuple

from ...protocol.wire.multifd import MAGIC as MULTIFD_MAGIC

HEAD = 4096
"""The number of bytes from the start of a file that are used to recognise it."""


class _Kind(NamedTuple):
    """A file type that has one of `magics` at `offset`. `advice` is what to do, or "" if nothing
    helps.

    `packed` means that such a file never holds a stream in one piece, even if one seems to begin in
    it.
    """

    offset: int
    magics: tuple[bytes, ...]
    name: str
    advice: str = ""
    packed: bool = False


def _unpacked(command: str) -> str:
    return f"unpack it: {command} | vmferry dump -"


_DISK = "give a qcow2 image with an internal snapshot, or a stream"
_MEMORY = "it has the guest's memory, but no devices, so nothing to resume it from"
_KINDS = (
    _Kind(
        0,
        (MULTIFD_MAGIC.to_bytes(4, "big"),),
        "a channel of a multifd migration, which holds pages alone",
        "name the file of its main channel, and give this one and each other by --channel FILE",
        packed=True,
    ),
    _Kind(0, (b"PK\x03\x04",), "a zip archive", _unpacked("unzip -p FILE"), packed=True),
    _Kind(257, (b"ustar",), "a tar archive", _unpacked("tar -xOf FILE")),
    _Kind(0, (b"LZIP",), "an lzip file", _unpacked("lzip -dc FILE"), packed=True),
    _Kind(
        0,
        (b"\x02\x21\x4c\x18",),
        "an lz4 file of the old kind",
        _unpacked("lz4 -dc FILE"),
        packed=True,
    ),
    _Kind(0, (b"7z\xbc\xaf\x27\x1c",), "a 7z archive", _unpacked("7z x -so FILE"), packed=True),
    _Kind(0, (b"Rar!\x1a\x07",), "a rar archive", _unpacked("unrar p -inul FILE"), packed=True),
    _Kind(0, (b"\x7fELF",), "an ELF file", f"if it is a core, {_MEMORY}; gdb and crash read it"),
    _Kind(
        0,
        (b"KDUMP   ", b"DISKDUMP"),
        "a kdump file of makedumpfile or dump-guest-memory",
        f"{_MEMORY}; crash reads it",
    ),
    _Kind(
        0,
        (b"makedumpfile\0",),
        "a flattened kdump file",
        f"{_MEMORY}; crash reads it after makedumpfile -R",
    ),
    _Kind(0, (b"EMiL",), "a LiME memory image", f"{_MEMORY}; volatility reads it"),
    _Kind(
        0,
        (
            b"\xa1\xb2\xc3\xd4",
            b"\xd4\xc3\xb2\xa1",
            b"\xa1\xb2\x3c\x4d",
            b"\x4d\x3c\xb2\xa1",
            b"\x0a\x0d\x0d\x0a",
        ),
        "a capture of network packets",
        "take the connection's bytes out of it: tcpflow -r FILE",
        packed=True,
    ),
    _Kind(
        0,
        tuple(b"\x16\x03" + bytes([minor]) for minor in range(5)),
        "TLS records, so the migration was encrypted",
        "capture it where it is not: without tls-creds, or with exec: or file:",
        packed=True,
    ),
    _Kind(
        0,
        (b"XenSavedDomain", b"Xen saved domain", b"LibxlFmt", b"\xff" * 8 + b"XENF"),
        "a save file of Xen",
        "of it, QEMU's record alone is a stream",
    ),
    _Kind(
        0,
        (b"VMA\0",),
        "a backup of Proxmox VE, which holds disks",
        "unpack it: vma extract FILE FOLDER",
    ),
    _Kind(0, (b"KDMV", b"COWD", b"# Disk DescriptorFile"), "a VMDK disk image", _DISK),
    _Kind(64, (b"\x7f\x10\xda\xbe",), "a VDI disk image", _DISK),
    _Kind(0, (b"vhdxfile", b"conectix"), "a VHD or VHDX disk image", _DISK),
    _Kind(0, (b"QED\0",), "a QED disk image", _DISK),
    _Kind(0, (b"LUKS\xba\xbe",), "an encrypted disk (LUKS)", _DISK),
    _Kind(512, (b"EFI PART",), "a raw disk image with a GPT", _DISK),
    _Kind(510, (b"\x55\xaa",), "a raw disk image with a boot sector", _DISK),
    _Kind(1080, (b"\x53\xef",), "an ext2, ext3 or ext4 file system", _DISK),
)
"""The file types in the order of their checks: a disk with a GPT has a boot sector, too."""


class Recognised(NamedTuple):
    """A one-line message about a file; `packed` means that no stream in it can be read in place."""

    message: str
    packed: bool = False


def recognised(head: bytes) -> Recognised | None:
    """Return what a file is that starts with `head`, and what to do, or None if its type is
    unknown.

    `head` is HEAD bytes, or the whole file if it is shorter.
    """
    if not head:
        return Recognised("the file is empty: nothing was written to it", packed=True)
    for kind in _KINDS:
        if any(head.startswith(magic, kind.offset) for magic in kind.magics):
            advice = f"; {kind.advice}" if kind.advice else ""
            return Recognised(f"not a migration stream, but {kind.name}{advice}", kind.packed)
    text = _text(head)
    return None if text is None else Recognised(text)


def _text(head: bytes) -> str | None:
    """Return a message if the bytes are text, such as an error message or a file name, or None."""
    try:
        # HEAD may cut off the last character.
        text = head.decode() if len(head) < HEAD else head[:-3].decode(errors="strict")
    except UnicodeDecodeError:
        return None
    line = text.strip().split("\n")[0].strip()
    if not line or not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    if line.startswith('{"QMP"'):
        return "not a migration stream, but QMP: this was captured on QEMU's monitor socket"
    if "<domain" in text:
        return "not a migration stream, but a domain's XML; give what virsh save wrote"
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    return f"not a migration stream, but text: {shown}"
