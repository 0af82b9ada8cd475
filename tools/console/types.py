"""Defines what users write as values, with completion by the shell: sizes, URIs, guests, files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from ...guest.sizes import MAX_SIZE, parse_size

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _IntegerType = click.ParamType[int]
    _TextType = click.ParamType[str]
else:
    # Older versions of click have no generic types.
    _IntegerType = _TextType = click.ParamType

SCHEMES = ("tcp:", "unix:", "exec:", "fd:", "file:")
"""Beginnings of the URIs that a migration can use."""
GUESTS = ("dir:", "synthetic:", "qemu:")
"""Beginnings of the descriptions of guests, one for each kind."""


class Size(_IntegerType):
    """A number of bytes such as `4096`, `512M` or `0x1000`; SIZE in each help."""

    name = "size"
    units = "SIZE is in bytes, or in units of 1024 with a letter: 4096, 64K, 512M, 1.5G, 0x1000."
    """The last lines of the help of a command that takes a size."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes. Raises BadParameter."""
        text = str(value)
        try:
            size = int(text, 16) if text.lower().startswith("0x") else parse_size(text)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if size > MAX_SIZE:
            self.fail(f"{text!r} is more than a file can hold", param, ctx)
        return size


class _Beginning(_TextType):
    """Text that begins with a word and a colon; a path follows some of the words."""

    words: tuple[str, ...]
    with_paths: tuple[str, ...]

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Return the words that this may become, or the paths behind the word that it has."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - for shells alone

        word, colon, path = incomplete.partition(":")
        found = [word for word in self.words if word.startswith(incomplete)]
        if colon and f"{word}:" in self.with_paths:
            found = [f"{word}:{path}" for path in _paths(path, folders=word == "dir")]
        return [CompletionItem(text) for text in found]


class Uri(_Beginning):
    """The URI that a migration goes to, or is sent from."""

    name = "uri"
    words = SCHEMES
    with_paths = ("unix:", "file:")


class Address(_Beginning):
    """The address at which clients connect to a QMP service."""

    name = "unix:path|tcp:host:port"
    words = ("unix:", "tcp:")
    with_paths = ("unix:",)


class GuestText(_Beginning):
    """The description of a guest: its kind, and the options of that kind."""

    name = "guest"
    words = GUESTS
    with_paths = ("dir:", "qemu:")


def _paths(beginning: str, *, folders: bool) -> list[str]:
    """Return the paths that begin so, with a slash behind folders, which are all if `folders`."""
    folder, name = os.path.split(beginning)
    try:
        with os.scandir(folder or ".") as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError:
        # A folder that cannot be read has nothing to offer.
        return []
    return sorted(
        os.path.join(folder, entry) + ("/" if is_folder else "")
        for entry, is_folder in found
        if entry.startswith(name) and (is_folder or not folders)
        if name or not entry.startswith(".")
    )
