"""Write the pieces of the outgoing stream that are not pages: those before and after them."""

from __future__ import annotations

import json

from ..guest.base import Guest
from ..guest.parts import DeviceState
from ..guest.written import written_section
from ..protocol import events
from ..protocol.devices.description import with_capabilities
from ..protocol.wire.marks import CommandType, SectionType
from ..protocol.writer import StreamWriter


def head(
    guest: Guest,
    state: DeviceState,
    capabilities: tuple[str, ...] | None,
    *,
    return_path: bool,
) -> bytes:
    """Return what precedes the iterative sections; the configuration has `capabilities`."""
    machine = guest.machine
    write = StreamWriter().write
    pieces = [
        write(events.Header(offset=0, version=3)),
        write(
            events.Configuration(
                offset=0,
                machine=machine.name,
                page_size=machine.page_size if machine.page_bits_sent else None,
                capabilities=capabilities,
                uuid=machine.uuid,
            )
        ),
    ]
    if return_path:
        command = int(CommandType.OPEN_RETURN_PATH)
        pieces.append(write(events.Command(offset=0, command=command, data=b"")))
    pieces += [written_section(section) for section in state.early]
    return b"".join(pieces)


def free_ids(state: DeviceState) -> tuple[int, int]:
    """Return two section ids that neither RAM nor a device has: of the disks, and of bitmaps."""
    taken = {section.section_id for section in (*state.early, *state.sections)}
    taken.add(state.ram_section_id)
    first, second = [number for number in range(1, len(taken) + 3) if number not in taken][:2]
    return first, second


def around(kind: SectionType, section_id: int, name: str, version: int) -> tuple[bytes, bytes]:
    """Return what stands before and behind the records of a piece of an iterative section."""
    write = StreamWriter().write
    head = write(events.IterativeSection(0, kind, section_id, name, 0, version))
    return head, write(events.Footer(0, section_id))


def ram_head(section_id: int) -> bytes:
    """Return the header of the piece that begins `ram`."""
    return StreamWriter().write(events.RamSection(0, SectionType.START, section_id))


def ram_start(guest: Guest, section_id: int, *, flush: bool) -> bytes:
    """Return the piece that begins `ram`: the list of RAM blocks.

    `flush`: the channels of multifd sync at MULTIFD_FLUSH records, of which the list has the first.
    """
    listed = StreamWriter().write(block_list(guest))
    return ram_head(section_id) + listed + part_tail(section_id, flush=flush)


def block_list(guest: Guest) -> events.RamBlocks:
    """Return the list of RAM blocks."""
    blocks = tuple(events.RamBlock(name=b.name, length=b.length) for b in guest.blocks)
    total = sum(block.length for block in blocks)
    return events.RamBlocks(offset=0, total=total, blocks=blocks, page_size=guest.machine.page_size)


def part_tail(section_id: int, *, flush: bool) -> bytes:
    """Return the end of a piece of `ram`, after a sync point of multifd if it is to `flush`."""
    write = StreamWriter().write
    end = write(events.EndOfRam(offset=0)) + write(events.Footer(offset=0, section_id=section_id))
    return write(events.MultifdFlush(offset=0)) + end if flush else end


def ram_end(section_id: int) -> bytes:
    """Return the empty SECTION_END of `ram`."""
    section = events.RamSection(0, SectionType.END, section_id)
    return StreamWriter().write(section) + part_tail(section_id, flush=False)


def devices(state: DeviceState) -> bytes:
    """Return all device sections, verbatim."""
    return b"".join(written_section(section) for section in state.sections)


def closing(state: DeviceState, capabilities: tuple[str, ...] | None = None) -> bytes:
    """Return the end of the stream, which lets the destination start, and the description.

    `capabilities` are those of the configuration, if they are not the machine's own.
    """
    write = StreamWriter().write
    pieces = [write(events.EndOfStream(offset=0))]
    if state.description is not None:
        text, found = state.description, json.loads(state.description)
        if capabilities is not None:
            found = with_capabilities(found, capabilities)
            text = json.dumps(found).encode()
        pieces.append(write(events.Description(offset=0, text=text, json=found)))
    return b"".join(pieces)
