"""Test that a twin has the same devices as a QEMU, and nothing of the host."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from vmferry.tools.precheck.twin.options import TwinError, twin_options

HARMLESS = {
    "-M pc,accel=kvm -m 2G -smp 2 -cpu host": "-M pc,accel=kvm -m 2G -smp 2 -cpu host",
    "--machine q35 --enable-kvm": "-machine q35 -enable-kvm",
    "-device virtio-net-pci,netdev=n,mac=52:54:00:00:00:01": (
        "-device virtio-net-pci,netdev=n,mac=52:54:00:00:00:01"
    ),
    "-incoming tcp:0:4444 -S -daemonize -pidfile /run/p -D /log -loadvm x": "",
    "-qmp unix:/q,server=on -monitor stdio -vnc :0 -spice port=1 -display gtk": "",
    "-chardev socket,id=c,path=/run/agent,server=on,wait=off": "-chardev null,id=c",
    "-serial file:/log -serial chardev:c -serial none -parallel /dev/lp0": (
        "-serial null -serial chardev:c -serial none -parallel null"
    ),
    "-netdev tap,id=n,ifname=tap0,script=no,vhost=on": "-netdev hubport,hubid=0,id=n",
    "-netdev user,id=n,hostfwd=tcp::22-:22,smb=/srv": "-netdev user,id=n",
    "-nic tap,model=e1000,mac=52:54:00:00:00:01,ifname=t": (
        "-nic hubport,hubid=0,model=e1000,mac=52:54:00:00:00:01"
    ),
    "-net nic,model=rtl8139 -net tap,ifname=t": "-net nic,model=rtl8139",
    "-object memory-backend-file,id=m,size=1G,mem-path=/dev/hugepages,share=on,prealloc=on": (
        "-object memory-backend-ram,id=m,size=1G"
    ),
    "-object memory-backend-memfd,id=m,size=1G,hugetlb=on": (
        "-object memory-backend-ram,id=m,size=1G"
    ),
    "-object rng-random,id=r,filename=/dev/random": "-object rng-builtin,id=r",
    "-object secret,id=s,file=/run/key -object iothread,id=i": "-object iothread,id=i",
    "-audiodev alsa,id=a,out.dev=x": "-audiodev none,id=a",
    "-virtfs local,path=/srv,mount_tag=t,security_model=none": "-virtfs synth,mount_tag=t",
    "-drive if=ide,index=3,media=cdrom,id=d": "-drive if=ide,index=3,media=cdrom,id=d",
}
"""Options, and those that a twin has in their place."""


@pytest.mark.parametrize("given", HARMLESS)
def test_twin_touches_nothing_of_the_host(given: str) -> None:
    """Broken: a twin would open sockets, logs or memory files of a running QEMU, or bring no such
    devices."""
    assert twin_options(shlex.split(given)) == shlex.split(HARMLESS[given])


DISKS = {
    "image.raw": ["image.raw"],
    "-hda image.raw": ["-hda", "image.raw"],
    "-cdrom image.raw": ["-cdrom", "image.raw"],
    "-drive": ["-drive", "file=image.raw,if=virtio,format=raw,cache=none,aio=native,id=d"],
    "-drive nested": ["-drive", "if=none,id=d,driver=raw,file.driver=file,file.filename=image.raw"],
    "-blockdev": ["-blockdev", "driver=file,filename=image.raw,node-name=p,locking=on"],
    "-blockdev json": [
        "-blockdev",
        json.dumps(
            {"driver": "file", "filename": "image.raw", "node-name": "p", "read-only": True}
        ),
    ],
}


@pytest.mark.parametrize("given", DISKS.values(), ids=DISKS)
def test_twin_opens_no_disk(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a twin would lock or write the image of a running guest, or have a flash memory of
    another size."""
    monkeypatch.chdir(tmp_path)
    Path("image.raw").write_bytes(bytes(12345))
    (_, value) = twin_options(given)
    properties = dict(part.split("=") for part in value.split(","))
    assert "image.raw" not in value
    assert properties["driver"] == "null-co"
    assert properties["size"] == "12345"
    assert properties.get("id", "d") == "d"
    assert properties.get("node-name", "p") == "p"


def test_disk_of_a_qcow2_image_has_the_guests_size(tmp_path: Path) -> None:
    """Broken: a flash memory in a qcow2 image would have the size of its file."""
    image = tmp_path / "image"
    image.write_bytes(
        b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(16) + (1 << 22).to_bytes(8, "big")
    )
    (_, value) = twin_options(["-pflash", str(image)])
    assert value == f"if=pflash,driver=null-co,read-zeroes=on,size={1 << 22}"


def test_node_on_another_node_has_its_size(tmp_path: Path) -> None:
    """Broken: libvirt's flash memory, a node on a node, would have another size than its file."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 19))
    file = {"driver": "file", "filename": str(image), "node-name": "storage"}
    flash = {"driver": "raw", "file": "storage", "node-name": "format", "read-only": True}
    made = twin_options(["-blockdev", json.dumps(file), "-blockdev", json.dumps(flash)])
    empty = f"driver=null-co,read-zeroes=on,size={1 << 19}"
    assert made[1::2] == [f"node-name=storage,{empty}", f"node-name=format,read-only=on,{empty}"]


REFUSED = {
    "-device vfio-pci,host=01:00.0": "it belongs to one QEMU alone",
    '-device \'{"driver":"vhost-user-fs-pci","chardev":"c"}\'': "it belongs to one QEMU alone",
    "-object sev-guest,id=s": "does not know whether a second QEMU may have it",
    "-tpmdev emulator,id=t,chardev=c": "does not know whether a second QEMU may have this option",
    "-readconfig file": "does not know whether a second QEMU may have this option",
    "-unheard-of": "does not know this option",
    "-blockdev '{broken'": "Expecting property name",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_not_known_to_be_harmless_is_refused(given: str) -> None:
    """Broken: a twin would take a device of the host from a running guest."""
    with pytest.raises(TwinError, match=REFUSED[given]):
        twin_options(shlex.split(given))
