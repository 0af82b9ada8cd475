"""Files and folders that get their names when they are complete, so none is ever half there."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType

from ..console.failure import named


class Staged:
    """Outputs of one command. Leaving the `with` by an exception removes all that was not kept."""

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
        """A descriptor of a new file, for its owner only; what is at `path` stays until `keep`.

        Raises OSError.
        """
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "exists, and is no file", str(path))
        temporary = self._beside(path)
        # Before it is made: a signal may come between the two.
        self._waiting.append((temporary, path))
        with named(path):
            return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def folder(self, path: Path) -> Path:
        """A new folder that will be at `path`, where nothing or an empty folder may be.

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
        """A name in the same folder, so that it can be renamed there. Raises OSError where another
        output will be."""
        if any(_real(path) == _real(other) for _, other in self._waiting):
            raise FileExistsError(errno.EEXIST, "two outputs of this name", str(path))
        real = _real(path)
        return real.with_name(f".{real.name[:200]}.{secrets.token_hex(4)}.part")

    def keep(self) -> None:
        """Give everything its name."""
        while self._waiting:
            temporary, path = self._waiting[-1]
            with named(path):
                temporary.replace(_real(path))
            self._waiting.pop()


def _real(path: Path) -> Path:
    """Where it is: what a link leads to is replaced, not the link."""
    return Path(os.path.realpath(path))
