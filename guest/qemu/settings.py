"""Change the migration capabilities and parameters of a QEMU for one migration, and put them back.

QEMU checks what it is given, and refuses what it does not know or cannot do together.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .monitor import GoneError, Monitor, QemuError


@dataclass(frozen=True)
class Wanted:
    """The capabilities and parameters of one migration, by their names in QMP."""

    capabilities: dict[str, bool] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)


class Settings:
    """The migration settings of one QEMU, as they were when this object was made."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.capabilities: Mapping[str, bool] = {
            each["capability"]: each["state"] for each in monitor.ask("query-migrate-capabilities")
        }
        self.parameters: Mapping[str, Any] = monitor.ask("query-migrate-parameters")
        self._changed = Wanted()

    def check_known(self, wanted: Wanted) -> None:
        """Raise QemuError for the first setting that this QEMU does not have."""
        for name, state in wanted.capabilities.items():
            if state and name not in self.capabilities:
                raise QemuError(f"this QEMU has no capability {name}")
        for name in wanted.parameters:
            if name not in self.parameters:
                raise QemuError(f"this QEMU has no parameter {name}")

    def change(self, wanted: Wanted) -> None:
        """Change these settings; after an error they are as they were. Raises QemuError."""
        self.check_known(wanted)
        capabilities = {
            name: state
            for name, state in wanted.capabilities.items()
            if self.capabilities.get(name, False) != state
        }
        # A parameter that is not changed now may be while the migration runs.
        self._changed = Wanted(capabilities, dict(wanted.parameters))
        try:
            # Some parameters count only with their capability, and QEMU checks both together.
            put(self._monitor, self._changed)
        except QemuError:
            with suppress(QemuError):
                self.restore()
            raise

    def adjust(self, name: str, value: Any) -> None:
        """Change a parameter while the migration runs. Raises QemuError."""
        self._monitor.ask("migrate-set-parameters", **{name: value})
        self._changed.parameters[name] = value

    def restore(self) -> None:
        """Set everything as it was before `change`. Raises QemuError; a QEMU that is gone is none.

        QEMU changes its capabilities only when no migration is under way.
        """
        before, self._changed = self.before, Wanted()
        with suppress(GoneError):
            put(self._monitor, before)

    @property
    def before(self) -> Wanted:
        """Return how everything was that is changed now."""
        return Wanted(
            {name: self.capabilities[name] for name in self._changed.capabilities},
            {name: self.parameters[name] for name in self._changed.parameters},
        )


def put(monitor: Monitor, wanted: Wanted) -> None:
    """Set capabilities and parameters. Raises QemuError."""
    if wanted.capabilities:
        listed = [
            {"capability": name, "state": state} for name, state in wanted.capabilities.items()
        ]
        monitor.ask("migrate-set-capabilities", capabilities=listed)
    if wanted.parameters:
        monitor.ask("migrate-set-parameters", **wanted.parameters)
