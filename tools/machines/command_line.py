"""Builds a QEMU command line that would accept a stream; facts that are not in it become comments.

Device sections have the path of their device (`0000:00:03.0/virtio-net`). RAM blocks, the sections
of processors and the configuration describe the machine. The table of `device_table` lists which
device writes which section.
"""

from __future__ import annotations

from ...guest.sizes import format_size
from ...protocol.reading.configuration import IGNORE_SHARED, MAPPED_RAM
from .device_options import add_devices
from .domain_notes import domain_notes
from .draft import Draft, Told, begin
from .firmware_options import add_firmware
from .memory_options import add_memory
from .pci_paths import PCI
from .processor_options import add_processors, choose_program
from .qemu_command import Command
from .table import is_of_a_device


def command_for(told: Told, incoming: str) -> Command:
    """Return the command line; `incoming` is the URI from which QEMU reads the stream.

    Raises StreamError if the devices do not match their description.
    """
    draft = begin(told)
    choose_program(draft)
    if not draft.machine:
        draft.say("The stream has no machine: say -machine NAME.")
    add_memory(draft)
    add_processors(draft)
    add_firmware(draft)
    add_devices(draft)
    _note_blocks(draft)
    _note_domain(draft)
    draft.add("-S")
    draft.say("-S: `cont` starts the guest when it has arrived.")
    _add_incoming(draft, incoming)
    return draft.command


def _note_blocks(draft: Draft) -> None:
    """Add comments on the RAM blocks that no option creates."""
    for block in draft.told.blocks:
        plain = is_of_a_device(block.name, draft.guest.machines)
        if block.name in draft.used or (plain and not PCI.match(block.name)):
            continue
        if block.name.rpartition("/")[0] not in draft.added:
            size = format_size(block.length)
            draft.say(f"RAM block {block.name} ({size}): what brings it is not known.")


def _note_domain(draft: Draft) -> None:
    domain = draft.told.domain
    if domain is None:
        return
    draft.say("A libvirt image: `virsh restore` takes it. Of its XML:")
    for line in domain_notes(domain):
        draft.say(f"  {line}")


def _add_incoming(draft: Draft, incoming: str) -> None:
    """Add -incoming, and comments on the capabilities that have to be set before."""
    configuration = draft.told.configuration
    wanted = configuration.capabilities if configuration and configuration.capabilities else ()
    names = [name for name in wanted if name in (IGNORE_SHARED, MAPPED_RAM)]
    if not names:
        draft.add("-incoming", incoming)
        return
    draft.add("-incoming", "defer")
    for name in names:
        draft.say(f"(qemu) migrate_set_capability {name} on")
    draft.say(f"(qemu) migrate_incoming {incoming}")
