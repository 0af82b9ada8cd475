"""A pair of `vmferry relay`, each at its host of a network."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.patience import PATIENCE
from tests.qemu.machine import VMFERRY
from tests.relay.network.guests import wait_until
from tests.relay.network.wire import FAR

PORT = 7010


class RelayProcess:
    """One relay; what it says is in `log`."""

    def __init__(
        self, host: list[str], log: Path, listen: str, connect: str, *options: str
    ) -> None:
        self.log = log
        with log.open("wb") as file:
            command = [*host, *VMFERRY, "relay", listen, connect, *options]
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        wait_until(self._listens, "the relay does not listen")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.said()
        return "listening on" in self.said()

    def said(self) -> str:
        """Return what it has said."""
        return self.log.read_text(errors="replace")

    def told(self) -> list[str]:
        """Return its lines that are no progress."""
        return [line for line in self.said().splitlines() if " passed, " not in line]

    def wait(self) -> int:
        """Return its exit status once it has ended."""
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill it, whatever it does."""
        self.process.kill()
        self.process.wait()


class Relays:
    """A near and a far relay, between two Unix sockets.

    `near` and `far`: what to put before their commands; `options` are those of both, `near_options`
    those of the near one.
    """

    def __init__(
        self,
        hosts: tuple[list[str], list[str]],
        folder: Path,
        *options: str,
        near_options: tuple[str, ...] = (),
        address: str = FAR,
        port: int = PORT,
    ) -> None:
        folder.mkdir(exist_ok=True)
        near, far = hosts
        self.entry, self.exit = f"unix:{folder}/entry.sock", f"unix:{folder}/exit.sock"
        link = f"tcp:{address}:{port}"
        self.far = RelayProcess(far, folder / "far.log", link, self.exit, "--link", "far", *options)
        try:
            self.near = RelayProcess(
                near,
                folder / "near.log",
                self.entry,
                link,
                *("--link", "near", *options, *near_options),
            )
        except BaseException:
            self.far.kill()
            raise

    @property
    def both(self) -> tuple[RelayProcess, RelayProcess]:
        """Return both relays."""
        return self.near, self.far

    def close(self) -> None:
        """End both, whatever they do."""
        for relay in self.both:
            relay.kill()
