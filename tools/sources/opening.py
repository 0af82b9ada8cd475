"""How a command opens the stream that its user names, and ends when something is wrong with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ...protocol.errors import StreamError
from ..console.failure import CommandError, describe, fail, note
from . import containers
from .containers import ChooseSnapshotError, Opened
from .snapshots import Snapshot

if TYPE_CHECKING:
    from .channels import Channels
    from .source import Left


def _opened(channels: Sequence[str]) -> AbstractContextManager[Channels | None]:
    """Open the channels of a multifd migration; there are none as a rule, and they load slowly."""
    if not channels:
        return nullcontext()
    from .channels import opened_channels  # noqa: PLC0415

    return opened_channels(channels)


def explain_damage(error: StreamError, opened: Opened) -> None:
    """Add to the error's message how the file was damaged, if that shows."""
    # Only a damaged stream needs it.
    from .damage_signs import explain  # noqa: PLC0415

    explain(error, opened)


def _note_damage(opened: Opened, name: str) -> None:
    """What is wrong before a stream that can be read, a line each on standard error."""
    for line in () if opened.image is None else opened.image.damage:
        message = f"{line}; the stream behind it was read"
        click.echo(f"vmferry: {click.format_filename(name)}: {message}", err=True)


def note_guess(name: str, behind: Left | None) -> None:
    """Warn on standard error where nothing tells where the stream ended that was read."""
    warning = None if behind is None else behind.warning()
    if warning is not None:
        note(f"{click.format_filename(name)}: {warning}")


def _folder_message(name: str) -> str:
    """What to do with a folder in place of a stream."""
    # Nothing else needs it, and it takes time to load.
    from ...guest.directory_finish import NAME as GUEST_FILE  # noqa: PLC0415

    if os.path.exists(os.path.join(name, GUEST_FILE)):
        return f"a guest at rest, no stream: vmferry send URI --guest dir:{name} makes one of it"
    return "a folder, no stream: name the file in it"


@contextmanager
def opened_stream(
    name: str,
    offset: int = 0,
    on_snapshots: Callable[[tuple[Snapshot, ...]], None] | None = None,
    channels: Sequence[str] = (),
    length: int | None = None,
) -> Iterator[Opened]:
    """What a user names as a stream, from `offset` on; whatever is wrong ends the command.

    `length`: bytes in which it ends, None if that is not known.
    `on_snapshots`: what to do instead where it is a qcow2 image, without a word of which snapshot.
    `channels`: the files of a multifd migration's channels, beside that of its main one. What is
    damaged in a libvirt image before its stream is mentioned when the stream was read.
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
        # Nobody reads our output any more, which is no news of the stream.
        raise
    except (StreamError, OSError, CommandError) as error:
        fail(describe(error, name))
