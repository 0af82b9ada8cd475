"""The entry point of the command: `vmferry`, and `python -m vmferry.tools`.

Signal handling is set up before anything is imported that takes time.
"""

from __future__ import annotations

import errno
import gc
import os
import sys

from .console import interruption


def main() -> None:
    """Run the `vmferry` command."""
    interruption.start()
    # Imports make much and drop nothing; `cli.main` enables the collector again.
    gc.disable()
    # Threads of numpy's BLAS would spin in each process, and nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        if "_VMFERRY_COMPLETE" in os.environ:
            from .console import completion  # noqa: F401, PLC0415 - for shells alone
        from .cli import main as command  # noqa: PLC0415

        command(prog_name="vmferry", obj=interruption.begin)
    except OSError as error:
        _no_output(error)
    finally:
        interruption.end()


def _no_output(error: OSError) -> None:
    """End with one line if standard output takes no more. Raises any other error."""
    if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO):
        raise error
    from .console.failure import describe, note  # noqa: PLC0415

    note(describe(error, "standard output"))
    # The interpreter would try to write the rest once more, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


if __name__ == "__main__":
    main()
