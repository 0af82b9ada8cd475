"""Finds what keeps the stream of one side from loading at the other, in the order of the stream."""

from __future__ import annotations

from collections.abc import Iterator

from ...protocol.devices.description import DescriptionError, subsections_of, text
from ...protocol.devices.fields import Field
from ...protocol.reading.configuration import IGNORE_SHARED, MAPPED_RAM
from .facts import EQUAL, Facts, Section
from .findings import Finding, Kind
from .layout import differing_field
from .mending import Mending
from .pci_space import first_difference, vectors

CHECKED = (IGNORE_SHARED, MAPPED_RAM)
"""The capabilities that a destination wants to have as the configuration says."""
_KNOWN_EVERYWHERE = ("ram", "dirty-bitmap")
"""The iterative sections that every QEMU reads."""


def compare(a: Facts, b: Facts) -> list[Finding]:
    """Return what differs; A's stream does not load at B if any of it is fatal."""
    mending = Mending(a, b)
    machine = list(_machine(a, b, mending))
    if machine:
        # Another machine has other devices: what they are is of no use before that is mended.
        return machine
    return [
        *_capabilities(a, b),
        *_blocks(a, b, mending),
        *_begun(a, b),
        *_sections(a, b, mending),
        *_extra(a, b),
    ]


def _machine(a: Facts, b: Facts, mending: Mending) -> Iterator[Finding]:
    if a.machine is not None and b.machine is not None and a.machine != b.machine:
        option = mending.machine()
        yield Finding(Kind.MACHINE, "machine", a.machine, b.machine, option=option)
    elif a.page_size != b.page_size:
        yield Finding(Kind.PAGE_SIZE, "pages", a.page_size, b.page_size)


def _capabilities(a: Facts, b: Facts) -> Iterator[Finding]:
    for name in CHECKED:
        if (name in a.capabilities) != (name in b.capabilities):
            mine, theirs = (_state(side, name) for side in (a, b))
            option = f"migrate_set_capability {name} {mine}"
            yield Finding(Kind.CAPABILITY, name, mine, theirs, option=option)


def _state(side: Facts, capability: str) -> str:
    return "on" if capability in side.capabilities else "off"


def _blocks(a: Facts, b: Facts, mending: Mending) -> Iterator[Finding]:
    absent = {key[0].rpartition("/")[0] for key in a.sections if key not in b.sections}
    for name, block in a.blocks.items():
        theirs = b.blocks.get(name)
        if theirs is None and "/" in name and name.rpartition("/")[0] in absent:
            # The device is missing with all that it has.
            continue
        if theirs is None:
            option = mending.block(name)
            yield Finding(Kind.NO_BLOCK, name, block.used, None, option=option)
        elif not theirs.takes(block.used):
            option = mending.size(name, block.used)
            yield Finding(Kind.BLOCK_SIZE, name, block.used, theirs.used, option=option)


def _begun(a: Facts, b: Facts) -> Iterator[Finding]:
    for key, version in a.begun.items():
        theirs = b.begun.get(key)
        if theirs is not None and version > theirs:
            yield Finding(Kind.TOO_NEW, key[0], version, theirs)
        elif theirs is None and key[0] not in _KNOWN_EVERYWHERE:
            yield Finding(Kind.UNCHECKED, key[0])


def _sections(a: Facts, b: Facts, mending: Mending) -> Iterator[Finding]:
    names = {section.name for section in b.sections.values()}
    for key, section in a.sections.items():
        theirs = b.sections.get(key)
        if theirs is not None:
            found = next(_section(section, theirs, b, mending), None)
            if found is not None:
                yield found
            continue
        kind = Kind.NO_INSTANCE if section.name in names else Kind.NO_SECTION
        yield Finding(kind, section.shown, option=mending.section(section))


def _section(a: Section, b: Section, there: Facts, mending: Mending) -> Iterator[Finding]:
    """Yield what differs between the same section of both sides, in the order of the stream."""
    known = (
        None
        if there.types is None or a.structure is None
        else there.types.of(a.structure.get("vmsd_name"))
    )
    if a.version > b.version:
        yield Finding(Kind.TOO_NEW, a.shown, a.version, b.version)
    elif known is not None and a.version < known.oldest:
        yield Finding(Kind.TOO_OLD, a.shown, a.version, known.oldest)
    yield from _pci(a, b, there, mending)
    yield from _compared(a, b)
    if known is not None and a.structure is not None:
        for subsection in subsections_of(a.structure):
            name = text(subsection, "vmsd_name")
            if name not in known.subsections and not _has(b, name):
                yield Finding(Kind.SUBSECTION, a.shown, detail=name)
    if a.version == b.version:
        yield from _layout(a, b, mending)


def _has(section: Section, subsection: str) -> bool:
    found = () if section.structure is None else subsections_of(section.structure)
    return any(text(entry, "vmsd_name") == subsection for entry in found)


def _pci(a: Section, b: Section, there: Facts, mending: Mending) -> Iterator[Finding]:
    if a.space is None or b.space is None:
        return
    path = a.name.rpartition("/")[0]
    found = first_difference(a.space, b.space, there.bars.get(path, {}))
    if found is None:
        return
    mine, theirs = (side.space[found.place] for side in (a, b) if side.space is not None)
    if found.what == "MSI-X":
        mine, theirs = vectors(a.space) or 0, vectors(b.space) or 0
    detail = f"{found.what}, byte {found.place:#x}"
    option = mending.pci(a, found.what)
    yield Finding(Kind.PCI, a.shown, mine, theirs, detail=detail, option=option)


def _compared(a: Section, b: Section) -> Iterator[Finding]:
    for path, mine in a.compared.items():
        theirs = b.compared.get(path)
        if theirs is not None and not _fits(mine, theirs):
            yield Finding(Kind.FIELD, a.shown, str(mine.value), str(theirs.value), detail=path)


def _fits(mine: Field, theirs: Field) -> bool:
    """Return whether a destination whose field is `theirs` takes `mine`."""
    one, other = mine.value, theirs.value
    if not (isinstance(one, int) and isinstance(other, int)):
        return True
    return one == other if mine.type.endswith(EQUAL) else one <= other


def _layout(a: Section, b: Section, mending: Mending) -> Iterator[Finding]:
    if a.structure is None or b.structure is None:
        return
    try:
        field = differing_field(a.structure, b.structure)
    except DescriptionError:
        return
    if field is not None:
        yield Finding(Kind.LAYOUT, a.shown, detail=field, option=mending.layout(a, field))


def _extra(a: Facts, b: Facts) -> Iterator[Finding]:
    for key, section in b.sections.items():
        if key not in a.sections:
            yield Finding(Kind.EXTRA, section.shown)
