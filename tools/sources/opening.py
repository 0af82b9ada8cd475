"""Opens the stream that the user of a command names, and ends the command on any error in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from ...protocol.errors import StreamError
from ..console.failure import CommandError, describe, fail, note
from ..console.text import echo, file_name
from . import containers
from .containers import ChooseSnapshotError, Opened
from .snapshots import Snapshot

if TYPE_CHECKING:
    from .channels import Channels
    from .source import Left


def _opened(channels: Sequence[str]) -> AbstractContextManager[Channels | None]:
    """Open the channels of a multifd migration. The module is slow to load, so it is only imported
    if there are any.
    """
    if not channels:
        return nullcontext()
    from .channels import opened_channels  # noqa: PLC0415

    return opened_channels(channels)


def explain_damage(error: StreamError, opened: Opened) -> None:
    """Append to the error's message how the file was damaged, if that can be detected."""
    # Only a damaged stream needs this module.
    from .damage_signs import explain  # noqa: PLC0415

    explain(error, opened)


def _note_damage(opened: Opened, name: str) -> None:
    """Print the damage before a readable stream to standard error, one line each."""
    for line in () if opened.image is None else opened.image.damage:
        message = f"{line}; the stream behind it was read"
        echo(f"vmferry: {file_name(name)}: {message}", err=True)


def note_guess(name: str, behind: Left | None) -> None:
    """Print a warning to standard error if the end of the stream is only a guess."""
    warning = None if behind is None else behind.warning()
    if warning is not None:
        note(f"{file_name(name)}: {warning}")


def _folder_message(name: str) -> str:
    """Return an error message for a folder that was given in place of a stream."""
    # Only this error path needs the module, which is slow to load.
    from ...guest.directory_finish import NAME as GUEST_FILE  # noqa: PLC0415

    if os.path.exists(os.path.join(name, GUEST_FILE)):
        return (
            f"a guest at rest, not a stream: make one by vmferry send file:FILE --guest dir:{name}"
        )
    return "a folder, not a stream: name the file in it"


def _prefix_message(name: str) -> str | None:
    """Return an error message for a URI or a guest in place of a file; None for anything else."""
    kind, _, path = name.partition(":")
    if kind == "dir" and os.path.isdir(path):
        return _folder_message(path)
    if kind == "file" and os.path.exists(path):
        return f"a stream is named by its file alone: {file_name(path)}"
    return None


@contextmanager
def opened_stream(
    name: str,
    offset: int = 0,
    on_snapshots: Callable[[tuple[Snapshot, ...]], None] | None = None,
    channels: Sequence[str] = (),
    length: int | None = None,
) -> Iterator[Opened]:
    """Open what a user names as a stream, from `offset` on; any error in it ends the command.

    `length` is the number of bytes in which the stream ends, or None if it is unknown.
    `on_snapshots` is called, in place of an error, for a qcow2 image without the name of a
    snapshot. `channels` names the files of a multifd migration's channels, in addition to that of
    its main channel. Damage in a libvirt image before its stream is reported after the stream was
    read.
    """
    try:
        with containers.open_stream(name, offset, length) as opened, _opened(channels) as beside:
            try:
                yield replace(opened, channels=beside)
            except StreamError as error:
                explain_damage(error, opened)
                raise
            _note_damage(opened, name)
    except ChooseSnapshotError as error:
        if on_snapshots is None:
            fail(describe(error, name))
        on_snapshots(error.snapshots)
        sys.exit(0)
    except IsADirectoryError:
        fail(describe(CommandError(_folder_message(name)), name))
    except BrokenPipeError:
        # The reader of our output has gone, which is not an error of the stream.
        raise
    except FileNotFoundError as error:
        message = _prefix_message(name)
        fail(describe(error if message is None else CommandError(message), name))
    except (StreamError, OSError, CommandError) as error:
        fail(describe(error, name))
