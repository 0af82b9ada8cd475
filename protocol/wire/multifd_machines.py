"""Say what multifd does on a machine, which its version decides.

Source: QEMU's documentation, docs/devel/migration/, and captured channels of QEMU 7.2 and 10.0.
"""

from __future__ import annotations

import re

_VERSION = re.compile(r"-(\d+)\.(\d+)$")

_FLUSH_SINCE = (8, 1)
"""Version of a machine from which on MULTIFD_FLUSH records are the sync points."""
_ZERO_PAGES_SINCE = (9, 0)
"""Version of a machine from which on packets carry zero pages; QEMU 7.2 would ignore them there."""


def _at_least(machine: str, version: tuple[int, int]) -> bool:
    found = _VERSION.search(machine)
    return found is None or (int(found[1]), int(found[2])) >= version


def syncs_at_flush(machine: str) -> bool:
    """Return whether MULTIFD_FLUSH records are the sync points of a machine of this name.

    Otherwise the end of each piece of the `ram` section is one.
    """
    return _at_least(machine, _FLUSH_SINCE)


def zero_pages_in_packets(machine: str) -> bool:
    """Return whether packets carry zero pages of a machine of this name, as its QEMU knows them.

    Otherwise they are records of the main channel.
    """
    return _at_least(machine, _ZERO_PAGES_SINCE)
