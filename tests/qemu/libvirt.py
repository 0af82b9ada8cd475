"""A libvirt of a test's own, with one small domain."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE, wait_until
from tests.qemu.machine import MANY_PAGES, MIB

NOBODY = 65534
DOMAIN = """
<domain type='qemu'>
 <name>small</name> <memory unit='MiB'>32</memory>
 <os> <type machine='pc-i440fx-7.2'>hvm</type> </os>
 <devices>
  <disk type='file'>
   <driver name='qemu' type='raw'/> <source file='{folder}/boot'/> <target dev='hda' bus='ide'/>
  </disk>
  <serial type='file'> <source path='{folder}/serial'/> </serial>
 </devices>
</domain>
"""


class Libvirt:
    """A libvirtd of a user's own, and of nobody where root runs the tests; all it has is in
    `folder`."""

    def __init__(self, folder: Path, image_format: str = "raw", disk: Path | None = None) -> None:
        """Start it; `disk`: the folder of the domain's disk and serial line, else `folder`."""
        self._folder = folder
        self._disk = disk or folder
        self._environment = {**os.environ, "HOME": str(folder), "LIBVIRT_AUTOSTART": "0"}
        for kind in ("RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME"):
            (folder / kind).mkdir()
            self._environment[f"XDG_{kind}"] = str(folder / kind)
        settings = folder / "CONFIG_HOME" / "libvirt"
        settings.mkdir()
        (settings / "qemu.conf").write_text(
            # No further daemon, that writes logs.
            f'save_image_format = "{image_format}"\nstdio_handler = "file"\n'
        )
        (folder / "domain").write_text(DOMAIN.format(folder=self._disk))
        (self._disk / "boot").write_bytes(
            (MANY_PAGES.ljust(510, b"\0") + b"\x55\xaa").ljust(MIB, b"\0")
        )
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            self._user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            paths = {folder, self._disk, *folder.rglob("*"), *self._disk.rglob("*")}
            for path in paths:
                os.chown(path, NOBODY, NOBODY)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["libvirtd"], env=self._environment, stderr=log, **self._user
            )
        self.socket = folder / "RUNTIME_DIR" / "libvirt" / "libvirt-sock"
        self._wait_for(self.socket, b"")

    def ask(self, *arguments: str) -> str:
        """Return the output of `virsh ARGUMENTS`."""
        ran = subprocess.run(
            ["virsh", "-q", "-c", "qemu:///session", *arguments],
            capture_output=True,
            check=False,
            text=True,
            env=self._environment,
            **self._user,
        )
        assert ran.returncode == 0, ran.stderr
        said: str = ran.stdout
        return said

    def wait_for_beats(self) -> None:
        """Wait until the guest has written to its serial line."""
        self._wait_for(self._disk / "serial", b"HHH")

    def _wait_for(self, path: Path, content: bytes) -> None:
        wait_until(
            lambda: path.exists() and (not content or content in path.read_bytes()),
            (self._folder / "log").read_text,
        )

    def stop(self) -> None:
        """End the domain and the daemon."""
        try:
            if "small" in self.ask("list", "--name"):
                self.ask("destroy", "small")
        finally:
            self._process.terminate()
            self._process.wait(PATIENCE)
