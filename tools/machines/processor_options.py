"""Add what a stream says of processors to a command line: the program, -smp and -accel."""

from __future__ import annotations

from . import cpu_notes
from .draft import Draft


def choose_program(draft: Draft) -> None:
    """Set the QEMU program, which depends on the processor, and what is known of the guest."""
    told = draft.told
    sections = [s for s in told.sections if s.name == cpu_notes.SECTION_NAME]
    found = cpu_notes.look(sections, told.description)
    guest = draft.guest.of(found.target.name if found.target else None)
    names = sorted({target for machine in guest.machines for target in machine.targets})
    target = guest.target or (found.target.name if found.target else None)
    if target is None and names:
        target = "x86_64" if "x86_64" in names else names[0]
        draft.say(f"The stream does not name the processor: it may be {' or '.join(names)}.")
    if target is None:
        target = "x86_64"
        draft.say("The stream does not name the processor: qemu-system-x86_64 is a guess.")
    draft.guest = guest
    draft.command.target = target


def add_processors(draft: Draft) -> None:
    """Add the number of processors and the accelerator."""
    sections = draft.told.sections
    names = ("cpu", "cpu_common")
    count = max(sum(s.name == name for s in sections) for name in names)
    last = max((s.instance_id for s in sections if s.name in names), default=0)
    if count > 1:
        more = f",maxcpus={last + 1}" if last >= count else ""
        draft.add("-smp", f"{count}{more}")
        draft.say("-smp: the stream does not have sockets, cores and threads.")
    if not count:
        draft.say("-smp: the stream says nothing of processors.")
    draft.say("-cpu: the stream does not name the model: say the source's, if it had one.")
    if any(section.name == "kvmclock" for section in sections):
        draft.add("-accel", "kvm")
    else:
        draft.say("-accel: say kvm or tcg, as the source had it.")
