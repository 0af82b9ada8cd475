"""Prints the containers of a stream for `dump`: a libvirt save image, a qcow2 image."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ...guest.sizes import format_size
from ..console.failure import CommandError
from ..console.text import echo
from ..sources.containers import Opened
from ..sources.save_image import SaveImage
from ..sources.snapshots import Snapshot


class NoXmlError(CommandError):
    """Raised if the domain XML is missing or damaged; the message is one line."""


def print_container(opened: Opened) -> None:
    """Print the containers of a stream, or nothing if it has none."""
    if opened.layers:
        echo(f"container    {', '.join(opened.layers)}")
    if opened.image is not None:
        running = {True: "yes", False: "no", None: "not known: the header is damaged"}
        echo(f"was running  {running[opened.image.was_running]}")
        if not opened.image.finished:
            echo("unfinished   libvirt did not write all of it")


def print_xml(opened: Opened, *, as_json: bool) -> None:
    """Print the domain XML, or a JSON object with the keys xml, cookie. Raises NoXmlError."""
    image = opened.image
    if image is None:
        raise NoXmlError("not a libvirt save image, so there is no domain XML")
    if image.xml is None:
        raise NoXmlError(str(image.xml_damage))
    echo(_xml_as_json(image) if as_json else image.xml.rstrip("\n"))


def _xml_as_json(image: SaveImage) -> str:
    return json.dumps({"xml": image.xml, "cookie": image.cookie}, indent=2)


def print_snapshots(snapshots: Iterable[Snapshot], *, as_json: bool) -> None:
    """Print a line for each snapshot, or a JSON object with the key snapshots."""
    if as_json:
        found = [snapshot.as_json() for snapshot in snapshots]
        echo(json.dumps({"snapshots": found}, indent=2))
        return
    for snapshot in snapshots:
        state = format_size(snapshot.state_size) if snapshot.state_size else "disks only"
        taken = f"{snapshot.taken:%Y-%m-%d %H:%M:%S} UTC"
        echo(f"{snapshot.id:4} {snapshot.name:24} {taken}  {state}")
