"""Add the machine and its memory to a command line: -machine, -m, backends and NUMA nodes."""

from __future__ import annotations

from . import plugged
from .draft import Draft
from .main_ram import Choice, LayoutError, choose
from .plugged_options import Backends, add_plugged, count_nvdimms
from .qemu_command import option_value

MIB = 1 << 20

_SWITCHES = {
    "pc": {"hpet": "hpet=off", "pckbd": "i8042=off", "vmmouse": "vmport=off"},
    "q35": {
        "hpet": "hpet=off",
        "pckbd": "i8042=off",
        "vmmouse": "vmport=off",
        "0000:00:1f.2/ich9_ahci": "sata=off",
        "0000:00:1f.3/ich9_smb": "smbus=off",
        "i8254": "pit=off",
    },
}
"""The machine options that turn off a built-in device, by the section that the stream then lacks.
"""
_SWITCHES_ON = {
    "microvm": {"0000:00:00.0/gpex_root": "pcie=on"},
    "virt": {"arm_gicv3": "gic-version=3", "smmuv3": "iommu=smmuv3"},
}
"""The machine options that add a device, by the section that the stream then has."""


def add_memory(draft: Draft) -> None:
    """Add the machine with its main memory, and the memory that is plugged in."""
    told = draft.told
    facts = plugged.look(
        [s for s in told.sections if plugged.is_told_by(s)], told.description, told.blocks
    )
    choice = _chosen(draft, facts)
    main = choice.main or []
    draft.used.update(block.name for block in main)
    named = {name for machine in draft.guest.machines for name in machine.memory}
    separate = [block for block in main if block.name not in named]
    backends = Backends(draft)
    backend = backends.id_of(separate[0]) if len(separate) == 1 else None
    _add_machine(draft, backend, nvdimms=count_nvdimms(choice, facts) > 0)
    _add_size(draft, choice, facts)
    for block in separate:
        backends.add(block)
        if len(separate) > 1:
            draft.add("-numa", f"node,memdev={backends.id_of(block)}")
    add_plugged(draft, choice, facts, backends)


def _add_machine(draft: Draft, backend: str | None, *, nvdimms: bool) -> None:
    """Add -machine with its switches; `backend`: id of the main memory's backend, if it has one;
    `nvdimms`: whether there are NVDIMMs.
    """
    tables = [block.name for block in draft.told.blocks]
    switches = [option_value(draft.machine)] if draft.machine else []
    if nvdimms or "/rom@etc/acpi/nvdimm-mem" in tables:
        switches.append("nvdimm=on")
    if "virt.secure-ram" in tables:
        switches.append("secure=on")
    own = {s.name for s in draft.told.sections}
    switches += [s for name, s in _SWITCHES.get(draft.family_name, {}).items() if name not in own]
    switches += [s for name, s in _SWITCHES_ON.get(draft.family_name, {}).items() if name in own]
    if backend is not None:
        switches.append(f"memory-backend={backend}")
    draft.add("-machine", ",".join(switches))
    draft.add("-nodefaults")


def _add_size(draft: Draft, choice: Choice, facts: plugged.Facts) -> None:
    """Add -m, with room for memory that is plugged in."""
    size = sum(block.length for block in choice.main or [])
    sockets = _slots(draft, choice, facts)
    # Memory that is plugged in is added to the main memory, and needs room for alignment.
    virtio = [block for block in draft.told.blocks if block.name in facts.virtio_mem]
    more = sum(block.length for block in [*choice.others, *virtio])
    room = size + 2 * more + (sockets << 30)
    hotplug = f",slots={sockets},maxmem={-(-room // MIB)}M" if sockets else ""
    draft.add("-m", f"{-(-size // MIB)}M{hotplug}")
    if sockets:
        draft.say("The stream does not have maxmem: say what the source had, if you know it.")


def _chosen(draft: Draft, facts: plugged.Facts) -> Choice:
    """Return which RAM blocks are main memory, and which are plugged in."""
    try:
        choice = choose(draft.told.blocks, draft.guest.machines)
    except LayoutError as error:
        draft.say(f"Memory: {error}.")
        return Choice([], [])
    try:
        return plugged.settle(choice, facts)
    except LayoutError:
        names = ", ".join(block.name for block in choice.others)
        draft.say(f"The stream does not give the order of memory: {names} are taken for nodes.")
        return Choice(choice.others, [])


def _slots(draft: Draft, choice: Choice, facts: plugged.Facts) -> int:
    """Return the number of DIMM slots: the chipset's state has an entry for each."""
    entries = plugged.count_slots(draft.told.sections, draft.told.description)
    if entries is None and (choice.others or facts.virtio_mem):
        return len(choice.others) + len(facts.virtio_mem)
    return entries or 0
