"""Name what a device needs and the stream does not have: drives, chardevs, numbers of chassis."""

from __future__ import annotations

from .draft import Draft


def device_property(draft: Draft, need: str, where: str) -> str:
    """Return the text of a property that the device at `where` requires.

    Adds a comment on what the property refers to.
    """
    if need in ("chassis", "chassis_nr"):
        return f",{need}={draft.next_number()}"
    if need == "serial":
        return ",serial=1"
    kind = {"drive": "disk", "memdev": "memory"}.get(need, need)
    option = {
        "drive": "-blockdev driver=file,filename=FILE,node-name",
        "chardev": "-chardev null,id",
        "rng": "-object rng-random,id",
        "audiodev": "-audiodev none,id",
        "memdev": "-object memory-backend-ram,size=SIZE,id",
    }[need]
    name = f"{kind}{draft.next_number()}"
    draft.say(f"{where}: {option}={name}")
    return f",{need}={name}"
