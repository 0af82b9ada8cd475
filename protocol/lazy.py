"""Name what a package exports without importing the modules that define it."""

from __future__ import annotations

from importlib import import_module

# Checkers know the name; a command waits for nothing that only they need.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def exported(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__` (PEP 562), which imports a name when it is first used.

    `homes` has the public names of each module, separated by spaces. A command that needs one
    module of a package does not wait for the import of the others.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return get
