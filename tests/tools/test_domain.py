"""Test what libvirt's XML says of a guest whose stream does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.tools.sources.domain import domain_of
from vmferry.tools.sources.save_image import SaveImage

from tests import streams

XML = """<domain type='kvm'><name>guest</name>
  <os><type arch='{arch}' machine='{machine}'>hvm</type></os>
  <devices>
    <memory model='dimm'><alias name='dimm0'/>
      <address type='dimm' slot='0' base='0x140000000'/></memory>
    <memory model='virtio-mem'><target><address base='0x200000000'/></target>
      <alias name='virtiomem0'/></memory>
    <memory model='dimm'><alias name='dimm1'/><address type='dimm' base='nowhere'/></memory>
    <memory model='dimm'><address type='dimm' base='0x1'/></memory>
  </devices></domain>"""


def image(xml: str | None) -> SaveImage:
    """Return a save image that has this XML."""
    return SaveImage(xml, None, True, "raw", True)


def test_domain() -> None:
    """Broken: a guest's machine, or where its DIMMs are, would be taken wrongly from the XML."""
    found = domain_of(image(XML.format(arch="i686", machine="pc-i440fx-2.1")))
    assert found is not None
    assert (found.machine, found.target) == ("pc-i440fx-2.1", "i386")
    assert found.plugged == {"memdimm0": 0x1_4000_0000, "memvirtiomem0": 0x2_0000_0000}


@pytest.mark.parametrize(
    "xml",
    [
        None,
        "<domain>",
        "no XML",
        '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">]><domain><name>&a;</name></domain>',
    ],
)
def test_no_domain(xml: str | None) -> None:
    """Broken: XML that is damaged, or that grows as it is read, would end a command, or fill
    memory."""
    assert domain_of(image(xml)) is None


@pytest.mark.parametrize(
    ("machine", "address"), [("pc-i440fx-2.1", 0), ("virt-2.12", 1 << 30), (None, None)]
)
def test_machine_of_libvirt(vmferry: Any, machine: str | None, address: int | None) -> None:
    """Broken: of a stream without a machine's name, memory would be at a wrong address, or nobody
    would say what is lacking."""
    opening = streams.opening()
    # A stream without configuration has no early devices either, so no description of them.
    left_out = (events.Configuration, events.DeviceSection)
    bare = [event for event in opening if not isinstance(event, left_out)]
    made = [*bare, *streams.zeros(), *streams.EVENTS[len(opening) : -1]]
    stream = vmferry.write("stream", streams.to_bytes(made))
    xml, saved, out = (str(vmferry.folder / name) for name in ("xml", "saved", "core"))
    arch = "aarch64" if machine == "virt-2.12" else "x86_64"
    name = machine or "nonsense-1.0"
    vmferry.write("xml", XML.format(arch=arch, machine=name).encode())
    assert vmferry.call("convert", stream, saved, "--to", "libvirt", "--xml", xml).exit_code == 0
    arguments = ("extract", saved, "-o", out, "--format", "elf", "--json")
    if machine is None:
        ran = vmferry.run(*arguments)
        assert "layout of machine nonsense-1.0 is not known: say --base" in ran.error
        ran = vmferry.run("extract", stream, "-o", out, "--format", "elf")
        assert "a machine without a name is not known: say its --machine" in ran.error
        ran = vmferry.call(
            "extract", stream, *arguments[2:], "--machine", "pc-q35-7.2", "--arch", "i386"
        )
        assert ran.exit_code == 0, ran.output
        assert json.loads(ran.stdout)["blocks"][0]["regions"][0]["address"] == 0
        with open(out, "rb") as file:
            assert file.read(20)[4:].startswith(b"\x01")
        return
    ran = vmferry.call(*arguments)
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["blocks"][0]["regions"][0]["address"] == address
