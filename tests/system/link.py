"""A network link between two network namespaces: a token bucket, a delay, packets lost.

Each namespace has one end of it, a TUN device. The token bucket is the kernel's (tc tbf, at the
sending end); delay and loss are made here, where packets pass from one device to the other, because
not every kernel has netem.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, replace

from tests.patience import PATIENCE
from tests.qemu.machine import missing

MTU = 9000
DEVICE = "wire"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
NEAR, FAR = "192.0.2.1", "192.0.2.2"
"""Addresses of the two ends; from those for documentation."""


@dataclass(frozen=True)
class Quality:
    """`rate` in bytes a second, `delay` of each direction in seconds, `loss`: part of packets."""

    rate: int
    delay: float = 0.0
    loss: float = 0.0


class Link:
    """Up until `close`. Commands run at its ends by `near` and `far`."""

    def __init__(self, quality: Quality) -> None:
        for tool in ("ip", "tc"):
            if shutil.which(tool) is None:
                missing(f"{tool} (iproute2)")
        if os.geteuid() or not os.access("/dev/net/tun", os.W_OK):
            missing("a root user with /dev/net/tun")
        self._quality = quality
        self._names = [f"vmferry-{os.getpid()}-{end}" for end in ("near", "far")]
        self._random = random.Random(1)
        self._stop = threading.Event()
        self._fds: list[int] = []
        self._threads: list[threading.Thread] = []
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        for name, address in zip(self._names, (NEAR, FAR), strict=True):
            self._fds.append(self._end(name, address))
        bucket = f"tbf rate {self._quality.rate * 8} burst 256kb latency 100ms"
        run(f"ip netns exec {self._names[0]} tc qdisc add dev {DEVICE} root {bucket}")
        near, far = self._fds
        for ends in ((near, far), (far, near)):
            self._threads.append(threading.Thread(target=self._pass_on, args=ends, daemon=True))
            self._threads[-1].start()

    def _end(self, name: str, address: str) -> int:
        run(f"ip netns add {name}")
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        device = f"vf{os.getpid()}"
        request = struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(fd, _TUNSETIFF, request)
        run(f"ip link set {device} netns {name} name {DEVICE}")
        inside = f"ip -n {name}"
        run(f"{inside} address add {address}/24 dev {DEVICE}")
        run(f"{inside} link set {DEVICE} mtu {MTU} up")
        run(f"{inside} link set lo up")
        return fd

    @property
    def near(self) -> list[str]:
        """Return the words before a command that is to run at the sending end."""
        return ["ip", "netns", "exec", self._names[0]]

    @property
    def far(self) -> list[str]:
        """Return the words before a command that is to run at the receiving end."""
        return ["ip", "netns", "exec", self._names[1]]

    def cut(self) -> None:
        """Lose everything from now on, as if the other host were gone."""
        self._quality = replace(self._quality, loss=1.0)

    def _pass_on(self, source: int, target: int) -> None:
        on_way: deque[tuple[float, bytes]] = deque()
        while not self._stop.is_set():
            try:
                packet = os.read(source, MTU)
                if self._random.random() >= self._quality.loss:
                    on_way.append((time.monotonic() + self._quality.delay, packet))
            except BlockingIOError:
                time.sleep(0.0005)
            while on_way and on_way[0][0] <= time.monotonic():
                os.write(target, on_way.popleft()[1])

    def close(self) -> None:
        """Take it down; what still runs at its ends is cut off."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for fd in self._fds:
            os.close(fd)
        for name in self._names[: len(self._fds)]:
            run(f"ip netns delete {name}")


def run(command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command.split(), check=True, timeout=PATIENCE)
