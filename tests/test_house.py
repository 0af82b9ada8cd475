"""The layout of the project: floors, folders, what the wheel holds, and what the documents say."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from vmferry.protocol.states import TRANSITIONS

ROOT = Path(__file__).parents[1]

FLOORS = (
    ("protocol",),
    ("transport",),
    ("guest",),
    ("sender", "receiver", "relay"),
    ("control",),
    ("tools",),
)
"""The packages, from the lowest floor to the highest."""

ROOT_FILES = ("__init__.py", "__main__.py")
"""The modules of the package `vmferry` itself, above all floors."""

TOOLS = (
    ("console",),
    ("sources", "client"),
    ("rebuild", "machines", "measure"),
    ("dump", "rescue", "convert"),
    ("compare", "extract", "precheck"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""The folders of `tools`, from the lowest floor to the highest."""

PROTOCOL = (
    ("errors", "lazy"),
    ("wire",),
    ("formats", "section_events", "handover", "return_path", "states"),
    ("events",),
    ("pages",),
    ("devices",),
    ("sections",),
    ("writer", "reading", "fast"),
    ("reader", "words"),
    ("rescue",),
)
"""The folders and files of `protocol`, from the lowest floor to the highest."""

NEEDS_MORE = re.compile(r"(Of|What|As|It|Its|See|Whether|How|Where|When|Which|Who|The same)\b")
"""First words of a docstring that needs a sentence which its reader does not see."""
NO_VERB = re.compile(r"(A|An|The|All|Every|Each)\b")
"""First words of a function's docstring that does not say what the function does."""

Floors = tuple[tuple[str, ...], ...]


def modules(folder: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield the dotted name and the syntax tree of each module of a package."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(module: str, tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names that a module imports from the project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = module.split(".")[: -node.level]
            base = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*base, name.name]) for name in node.names)


def upward(floors: Floors, folder: str, depth: int) -> list[str]:
    """Return the imports of a package that lead to a folder on the same floor or above."""
    floor = {name: level for level, names in enumerate(floors) for name in names}
    found = []
    for module, tree in modules(folder):
        here = module.split(".")[depth]
        for name in imported(module, tree):
            there = [*name.split("."), ""][depth]
            if {here, there} <= floor.keys() and there != here and floor[there] >= floor[here]:
                found.append(f"{module} imports {name}")
    return found


@pytest.mark.parametrize("folder", [name for names in FLOORS for name in names])
def test_no_floor_imports_one_above(folder: str) -> None:
    """Broken: who changes a floor could break what is below it, and imports could go in circles."""
    assert upward(FLOORS, folder, 0) == []


def test_no_folder_of_tools_imports_one_above() -> None:
    """Broken: what a command does could not be used without the command."""
    assert upward(TOOLS, "tools", 1) == []


def test_no_folder_of_protocol_imports_one_above() -> None:
    """Broken: a section could not be changed without the reader and the writer of all others."""
    assert upward(PROTOCOL, "protocol", 1) == []
    inside = {path.stem for path in (ROOT / "protocol").iterdir() if path.suffix in ("", ".py")}
    assert inside - {"__init__", "__pycache__"} == {name for names in PROTOCOL for name in names}


def test_click_is_for_commands_alone() -> None:
    """Broken: a program could not use what a command does without being a command itself."""
    users = set()
    for module, tree in (found for names in FLOORS for name in names for found in modules(name)):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
            if "click" in names:
                users.add(".".join(module.split(".")[:2]))
    assert users == {"tools.cli", "tools.commands", "tools.console"}


@pytest.mark.parametrize("folder", [name for names in FLOORS for name in names])
def test_every_folder_says_its_job(folder: str) -> None:
    """Broken: a folder would be missing in the wheel, or nobody would know what belongs there."""
    for path in (ROOT / folder).rglob("*.py"):
        package = path.parent / "__init__.py"
        assert package.exists(), package
        assert ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))), package


def test_every_module_is_installed() -> None:
    """Broken: a module would work in a checkout, and be missing where vmferry was installed."""
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for path in ROOT.glob("*/**/__init__.py"):
        name = ".".join(["vmferry", *path.parent.relative_to(ROOT).parts])
        if name.split(".")[1] in {name for names in FLOORS for name in names}:
            assert f'    "{name}",\n' in declared, name
    files = importlib.metadata.files("vmferry") or []
    installed = {str(file) for file in files if str(file).endswith(".py")}
    if any(file.startswith("vmferry/") for file in installed):
        for folder in (name for names in FLOORS for name in names):
            for path in (ROOT / folder).rglob("*.py"):
                assert f"vmferry/{path.relative_to(ROOT)}" in installed, path
        folders = {name for names in FLOORS for name in names}
        assert {file.split("/")[1] for file in installed} == {*folders, *ROOT_FILES}


def test_root_holds_the_package_alone() -> None:
    """Broken: a script in the root of the repository would become a part of the package."""
    assert {path.name for path in ROOT.glob("*.py")} == set(ROOT_FILES)


def test_wire_document_is_the_declarations() -> None:
    """Broken: docs/wire.md would describe another format than the one that is read and written."""
    script = [sys.executable, str(ROOT / "docs" / "make_wire.py"), "-"]
    made = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "wire.md").read_text(encoding="utf-8"), "run docs/make_wire.py"


def test_diagram_of_states_is_the_table() -> None:
    """Broken: the document would show transitions that the state machine does not know."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (diagram,) = re.findall(r"stateDiagram-v2\n(.*?)```", text, re.DOTALL)
    shown = set(re.findall(r"^ +([\w-]+) --> ([\w-]+)$", diagram, re.MULTILINE))
    table = {(str(old), str(new)) for old, news in TRANSITIONS.items() for new in news}
    # A name with a hyphen is no name of a state in Mermaid.
    assert shown == {(old.replace("-", "_"), new.replace("-", "_")) for old, new in table}


def test_laws_name_tests_that_exist() -> None:
    """Broken: a law would be guarded by a test that is not there any more."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    laws = text[text.index("## The laws") : text.index("## The handover")]
    named = re.findall(r"`(tests/[\w/.]+)`", laws)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_documents_link_to_what_exists() -> None:
    """Broken: a reader would follow a link that leads nowhere."""
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Yield line and text of each docstring, those of attributes too; and if it is a function's."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for before, statement in pairwise([None, *node.body]):
            match statement:
                case ast.Expr(ast.Constant(str(text))):
                    if before is None or isinstance(before, (ast.Assign, ast.AnnAssign)):
                        yield statement.lineno, text, function and before is None


@pytest.mark.parametrize("folder", [*(name for floor in FLOORS for name in floor), "tests"])
def test_docstrings_make_sense_alone(folder: str) -> None:
    """Broken: hover text and search results would show half a sentence."""
    unclear = [
        f"{module}:{line}: {text.splitlines()[0]}"
        for module, tree in modules(folder)
        for line, text, function in docstrings(tree)
        if NEEDS_MORE.match(text) or (function and NO_VERB.match(text))
    ]
    assert not unclear, "\n".join(unclear)
