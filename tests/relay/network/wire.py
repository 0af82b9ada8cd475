"""A network between two hosts, which are network namespaces: a rate, and cuts in each direction.

Between them stands a router, a third namespace, that loses what it shall lose without a word. The
rate is a token bucket of the kernel's at each sending end. For a delay there is
`tests.system.link.Link`, which carries each packet itself and so is slower.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from contextlib import suppress

from tests.patience import PATIENCE
from tests.qemu.machine import missing

NEAR, FAR = "192.0.2.1", "192.0.2.129"
"""Addresses of the two hosts; from those for documentation."""
_ROUTER = {"near": "192.0.2.2", "far": "192.0.2.130"}
_HOSTS = {"near": NEAR, "far": FAR}
_RULE = 10
"""Priority of the rule that loses what arrives at the router."""
_numbers = itertools.count()

DIRECTIONS = ("near", "far")
"""The hosts from which packets may be lost."""


class Wire:
    """Up until `close`. Commands run at its ends by `near` and `far`.

    `rate`: bytes a second of each direction; 0: no limit.
    """

    def __init__(self, rate: int = 0) -> None:
        for tool in ("ip", "tc", "ss"):
            if shutil.which(tool) is None:
                missing(f"{tool} (iproute2)")
        if os.geteuid():
            missing("a root user, who may make network namespaces,")
        self._prefix = f"vmferry-{os.getpid()}-{next(_numbers)}"
        self._lost: set[str] = set()
        try:
            self._open(rate)
        except BaseException:
            self.close()
            raise

    def _name(self, end: str) -> str:
        return f"{self._prefix}-{end}"

    def _open(self, rate: int) -> None:
        router = self._name("router")
        for end in (*DIRECTIONS, "router"):
            _run(f"ip netns add {self._name(end)}")
            _run(f"ip -n {self._name(end)} link set lo up")
        for end in DIRECTIONS:
            host = self._name(end)
            peer = f"veth peer name to-{end} netns {router}"
            _run(f"ip -n {host} link add name wire type {peer}")
            _run(f"ip -n {host} address add {_HOSTS[end]}/25 dev wire")
            _run(f"ip -n {router} address add {_ROUTER[end]}/25 dev to-{end}")
            _run(f"ip -n {host} link set wire up")
            _run(f"ip -n {router} link set to-{end} up")
            _run(f"ip -n {host} route add default via {_ROUTER[end]}")
            if rate:
                # A burst holds what leaves between two ticks of a busy machine.
                burst = max(rate // 100, 1 << 17)
                bucket = f"tbf rate {rate * 8} burst {burst} latency 100ms"
                _run(f"ip netns exec {host} tc qdisc add dev wire root {bucket}")
        forward = "echo 1 >/proc/sys/net/ipv4/ip_forward"
        subprocess.run(["ip", "netns", "exec", router, "sh", "-c", forward], check=True)

    @property
    def near(self) -> list[str]:
        """Return what to put before a command that shall run at the near host."""
        return ["ip", "netns", "exec", self._name("near")]

    @property
    def far(self) -> list[str]:
        """Return the same for the far host."""
        return ["ip", "netns", "exec", self._name("far")]

    def cut(self, *directions: str) -> None:
        """Lose all packets from these hosts from now on; without a name, from both."""
        for end in directions or DIRECTIONS:
            if end not in self._lost:
                self._rule("add", end)
                self._lost.add(end)

    def mend(self) -> None:
        """Pass all packets again."""
        while self._lost:
            self._rule("del", self._lost.pop())

    def _rule(self, verb: str, end: str) -> None:
        router = self._name("router")
        _run(f"ip -n {router} rule {verb} iif to-{end} priority {_RULE} blackhole")

    def reset(self) -> None:
        """Reset all TCP connections of the near host; those that they lead to hear of it."""
        killed = [*self.near, "ss", "-K", "-H", "-t"]
        subprocess.run(killed, timeout=PATIENCE, check=True, capture_output=True)

    def close(self) -> None:
        """Take it down; what still runs at its ends is cut off."""
        for end in (*DIRECTIONS, "router"):
            with suppress(subprocess.CalledProcessError):
                _run(f"ip netns delete {self._name(end)}")


def _run(command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command.split(), check=True, timeout=PATIENCE, capture_output=True)
