"""Start two services, and move a guest from one to the other by QMP.

    python drive_by_qmp.py

The same commands drive a QEMU. The client is qemu.qmp, which QEMU's developers maintain.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient


@asynccontextmanager
async def service(folder: Path, name: str, *arguments: str) -> AsyncIterator[QMPClient]:
    """Run `vmferry serve`, and yield a client of it."""
    address = folder / f"{name}.sock"
    command = [sys.executable, "-m", "vmferry.tools", "serve", "--qmp", f"unix:{address}"]
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        # The first line says that it listens.
        await process.stderr.readline()
        client = QMPClient(name)
        await client.connect(str(address))
        yield client
        await client.execute("quit")
        # The service hangs up first, so the client may see the end of its connection.
        with suppress(EOFError):
            await client.disconnect()
    except BaseException:
        process.terminate()
        raise
    finally:
        await process.wait()


async def move(folder: Path) -> None:
    """Move the guest, and print the states of the migration as they change."""
    uri = f"unix:{folder}/migration"
    async with (
        service(folder, "target", "--guest", "synthetic:32M", "--incoming", uri) as target,
        service(folder, "source", "--guest", "synthetic:32M,dirty-rate=2M") as source,
    ):
        await source.execute("migrate-set-parameters", {"downtime-limit": 200})
        capability = {"capability": "events", "state": True}
        await source.execute("migrate-set-capabilities", {"capabilities": [capability]})
        with source.listener("MIGRATION") as changes:
            await source.execute("migrate", {"uri": uri})
            async for change in changes:
                data: Any = change["data"]
                status = data["status"]
                print(f"source: {status}")
                if status in ("completed", "failed", "cancelled"):
                    break
        figures: Any = {}
        while figures.get("status") != "completed":
            figures = await target.execute("query-migrate")
        state: Any = await target.execute("query-status")
        print(f"target: {state['status']}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(move(Path(temporary)))
