"""Add memory backends to a command line, and the DIMMs and virtio-mem devices that use them."""

from __future__ import annotations

from ...protocol import events
from . import plugged
from .bus_options import place_on_pci
from .draft import Draft
from .main_ram import Choice, LayoutError, regions
from .pci_paths import PCI
from .qemu_command import option_value


class Backends:
    """The memory backends of a command line, which are shared if the stream has shared memory."""

    def __init__(self, draft: Draft) -> None:
        shared = any(block.address is not None for block in draft.told.blocks)
        self._share = ",share=on" if shared else ""
        self._draft = draft

    @staticmethod
    def id_of(block: events.RamBlock) -> str:
        """Return the id of the block's memory backend."""
        return option_value(block.name.removeprefix("/objects/"))

    def add(self, block: events.RamBlock, name: str | None = None) -> None:
        """Add the backend of a block, whose id is `name` if that is given."""
        name = self.id_of(block) if name is None else name
        size = f"size={block.length}"
        self._draft.add("-object", f"memory-backend-ram,id={name},{size}{self._share}")
        self._draft.used.add(block.name)


def count_nvdimms(choice: Choice, facts: plugged.Facts) -> int:
    """Return the number of NVDIMMs, for which the chipset's state has no slots."""
    return max(0, len(choice.others) - (facts.slots or 0))


def add_plugged(draft: Draft, choice: Choice, facts: plugged.Facts, backends: Backends) -> None:
    """Add the memory that is plugged in."""
    placed = _placed(draft, choice, facts)
    nvdimms = count_nvdimms(choice, facts)
    if 0 < nvdimms < len(choice.others):
        draft.say(f"{nvdimms} of the {len(choice.others)} plugged in are nvdimm, not pc-dimm.")
    for number, block in enumerate(choice.others):
        backends.add(block)
        kind = "nvdimm" if nvdimms == len(choice.others) else "pc-dimm"
        address = f",addr={placed[block.name].span[0]:#x}" if block.name in placed else ""
        memory = f"memdev={backends.id_of(block)}{address}"
        draft.add("-device", f"{kind},id=plugged{number},{memory}")
        if not address:
            draft.say(f"{block.name} ({kind}): the stream does not have its slot or address.")
    for block in draft.told.blocks:
        if block.name in facts.virtio_mem:
            _add_virtio_mem(draft, block, facts.virtio_mem[block.name], backends)


def _placed(draft: Draft, choice: Choice, facts: plugged.Facts) -> dict[str, plugged.Plugged]:
    """Return the plugged memory whose address is known, by the names of its RAM blocks."""
    if not choice.others:
        return {}
    seen = []
    try:
        seen = regions(draft.guest, choice.main or [])
    except LayoutError:
        draft.say(f"Where machine {draft.machine} has its memory is not known.")
    if not seen:
        return {}
    found, _ = plugged.place(draft.guest, seen, choice, list(draft.told.blocks), facts)
    return {each.block.name: each for each in found}


def _add_virtio_mem(
    draft: Draft, block: events.RamBlock, found: plugged.Plugged | None, backends: Backends
) -> None:
    path, _, name = block.name.rpartition("/")
    name = option_value(name)
    backends.add(block, name)
    address = f",memaddr={found.span[0]:#x}" if found is not None else ""
    size = sum(region.length for region in found.regions) if found is not None else 0
    place = place_on_pci(draft, path) if PCI.fullmatch(path) else ""
    options = f"virtio-mem-pci,memdev={name},requested-size={size}{address}{place}"
    draft.add("-device", options)
    draft.added[path] = "virtio-mem"
