"""The public names of the packages, and the root of all errors."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import vmferry
from vmferry.protocol import VmferryError

PACKAGES = ("protocol", "transport", "guest", "sender", "receiver", "relay", "control", "tools")
OURS = (
    "IllegalTransitionError",
    "MismatchError",
    "EarlyMismatchError",
    "PayloadError",
    "FormatError",
)
"""Errors that never reach a caller from outside."""


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names(name: str) -> None:
    """Broken: what the documents import would not be there, or would be something else."""
    package = importlib.import_module(f"vmferry.{name}")
    assert package.__all__
    for public in package.__all__:
        value: Any = getattr(package, public)
        assert value.__name__ == public
        # The words of a setting are declared with all settings.
        home = value.__module__.removesuffix(".transport.settings")
        assert home == "vmferry" or home.startswith(f"vmferry.{name}.")
        assert inspect.getdoc(value)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_names_of_the_root() -> None:
    """Broken: `from vmferry import Sender` or `vmferry.sender` would fail."""
    for public in vmferry.__all__:
        value: Any = getattr(vmferry, public)
        assert value.__name__ == public
        assert value.__module__.startswith("vmferry.")
    for name in PACKAGES:
        assert getattr(vmferry, name) is importlib.import_module(f"vmferry.{name}")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        vmferry.nonsense  # noqa: B018


def test_version_is_declared_once() -> None:
    """Broken: a program and `vmferry -V` would name different versions."""
    assert vmferry.__version__ == importlib.metadata.version("vmferry")
    ran = subprocess.run(
        [sys.executable, "-m", "vmferry", "-V"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"vmferry, version {vmferry.__version__}\n"


def test_a_package_imports_nothing_that_is_not_used() -> None:
    """Broken: `vmferry dump` would wait for the import of what sends and receives."""
    code = (
        f"import sys\nfor name in {PACKAGES}: __import__('vmferry.' + name)\n"
        "print([name for name in ('numpy', 'construct', 'vmferry.protocol.reader')"
        " if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_one_root_of_errors() -> None:
    """Broken: who uses the library would have to catch errors that it does not name."""
    strange = []
    for name in PACKAGES:
        package = importlib.import_module(f"vmferry.{name}")
        for found in pkgutil.walk_packages(package.__path__, f"vmferry.{name}."):
            if found.name.endswith("__main__"):
                continue
            module = importlib.import_module(found.name)
            strange += [
                f"{found.name}.{title}"
                for title, value in vars(module).items()
                if inspect.isclass(value)
                and issubclass(value, Exception)
                and value.__module__ == found.name
                and title.endswith("Error")
                and title not in OURS
                and not issubclass(value, VmferryError)
            ]
    assert strange == []


def test_folder_of_any_name() -> None:
    """Broken: no test would run in the folder of an unpacked release, such as vmferry-0.1.0."""
    path = Path(__file__).parent.parent / "__init__.py"
    spec = importlib.util.spec_from_file_location("vmferry-0.1.0", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__version__ == vmferry.__version__
