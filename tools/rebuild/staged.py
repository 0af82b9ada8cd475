"""Writes files and folders under temporary names until they are complete."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType

from ..console.failure import named


class Staged:
    """The outputs of one command. Leaving the `with` block removes all that were not kept."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Path, Path]] = []

    def __enter__(self) -> Staged:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for temporary, _ in self._waiting:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)

    def file(self, path: Path) -> int:
        """Open a new file that only its owner can access, and return its descriptor.

        A file that exists at `path` remains until `keep`. Raises OSError.
        """
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "exists, and is no file", str(path))
        temporary = self._beside(path)
        # This precedes the creation, because a signal may arrive between the two steps.
        self._waiting.append((temporary, path))
        with named(path):
            return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def folder(self, path: Path) -> Path:
        """Create a new folder that will be renamed to `path`, where nothing or an empty folder may
        exist.

        Raises OSError.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(errno.EEXIST, "exists already", str(path))
        temporary = self._beside(path)
        self._waiting.append((temporary, path))
        with named(path):
            temporary.mkdir(0o700)
        return temporary

    def _beside(self, path: Path) -> Path:
        """Return a temporary name in the same folder, so that it can be renamed to `path`.

        Raises OSError if another output has this path.
        """
        if any(_real(path) == _real(other) for _, other in self._waiting):
            raise FileExistsError(errno.EEXIST, "two outputs of this name", str(path))
        real = _real(path)
        return real.with_name(f".{real.name[:200]}.{secrets.token_hex(4)}.part")

    def keep(self) -> None:
        """Rename all outputs to their final names."""
        while self._waiting:
            temporary, path = self._waiting[-1]
            with named(path):
                temporary.replace(_real(path))
            self._waiting.pop()


def _real(path: Path) -> Path:
    """Return the path with links resolved: the target of a link is replaced, not the link."""
    return Path(os.path.realpath(path))
