"""Make an initramfs with this Python, the modules that a program needs, and the program as init."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]

LOADED = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
modules = {}
for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None)
    if name != "__main__" and file and module.__spec__ is not None:
        modules[module.__spec__.name] = (file, hasattr(module, "__path__"))
with open("/proc/self/maps") as maps:
    libraries = {line.split(None, 5)[5].strip() for line in maps if ".so" in line}
print(json.dumps([modules, sorted(libraries), sys.path]))
"""
"""Import what is named, and tell the files of all modules and libraries that this took."""

FOLDER = f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
PYTHON = f"usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"

ALWAYS = ("os", "site", "encodings.idna", "encodings.ascii", "encodings.latin_1", "runpy")
"""Modules that Python itself needs to start."""

Files = dict[str, tuple[int, bytes]]
"""Mode and content by the name from the root."""


def collect(init: Path, modules: Iterable[str]) -> Files:
    """Return the files of a system that runs the Python program `init` with these modules."""
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, *ALWAYS, *modules],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    found, libraries, path = json.loads(ran.stdout)
    files: Files = {
        "init": (0o755, f"#!/{PYTHON}\n".encode() + init.read_bytes()),
        PYTHON: (0o755, Path(sys.executable).resolve().read_bytes()),
        # Python looks for it to find out where it is.
        f"{FOLDER}/lib-dynload/empty": (0o644, b""),
    }
    for name, (file, package) in found.items():
        add_module(files, name, Path(file), package)
    extensions = {file for file, _ in found.values()}
    for library in set(libraries) - extensions:
        add_library(files, Path(library), path)
    return files


def add_module(files: Files, name: str, file: Path, package: bool) -> None:
    """Add a module; Python compiles nothing in a virtual machine, where that takes long."""
    place = Path(FOLDER, *name.split("."))
    if file.suffix != ".py":
        files[str(place.parent / file.name)] = (0o755, file.read_bytes())
        return
    source = place / "__init__.py" if package else place.with_suffix(".py")
    files[str(source)] = (0o644, file.read_bytes())
    with tempfile.NamedTemporaryFile() as compiled:
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(file), compiled.name, f"/{source}", True, invalidation_mode=mode)
        cache = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        files[str(cache)] = (0o644, Path(compiled.name).read_bytes())


def add_library(files: Files, library: Path, path: Iterable[str]) -> None:
    """Add a library: one of a wheel beside its modules, one of the system where that finds it."""
    for folder in path:
        if folder and folder != str(ROOT) and library.is_relative_to(folder):
            relative = library.relative_to(folder)
            files[f"{FOLDER}/{relative}"] = (0o755, library.read_bytes())
            return
    # The loader looks for it under a shorter name, which is a link.
    for name in {other.name for other in library.parent.iterdir() if other.resolve() == library}:
        folder = "lib64" if name.startswith("ld-linux") else "usr/lib"
        files[f"{folder}/{name}"] = (0o755, library.read_bytes())


def write(files: Files, target: Path) -> None:
    """Write a cpio archive in the format that Linux unpacks (newc)."""
    folders = {str(parent) for name in files for parent in Path(name).parents if parent.name}
    folders |= {"dev", "proc", "sys", "tmp"}
    with target.open("wb") as file:
        entries = [(name, 0o040755, b"") for name in sorted(folders)]
        entries += [(name, 0o100000 | mode, data) for name, (mode, data) in files.items()]
        entries.append(("TRAILER!!!", 0, b""))
        for number, (name, mode, data) in enumerate(entries, 1):
            fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
            head = b"070701" + b"".join(b"%08x" % field for field in fields)
            file.write(_padded(head + name.encode() + b"\0"))
            file.write(_padded(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
