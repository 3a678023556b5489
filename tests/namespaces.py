"""Machines of their own on this one: network namespaces with names, joined by a virtual cable."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ETC = Path("/etc/netns")
"""Where ``ip netns exec`` finds files that a namespace has in place of those of /etc."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A namespace with a host name and an address of its own."""

    namespace: str
    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """Returns the command line that runs a command on this machine."""
        # The name of the machine is that of a namespace, too: gloo asks for it.
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *named, *command]

    def processes(self) -> list[psutil.Process]:
        """Returns every process that runs on this machine."""
        said = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False
        )
        found = []
        for pid in said.stdout.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def lose(self) -> None:
        """Kills everything that runs on this machine, as if its power had failed."""
        while processes := self.processes():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=5)


def why_not() -> str | None:
    """Returns why machines cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in ("ip", "unshare", "hostname") if shutil.which(name) is None]:
        return f"{', '.join(missing)} is not installed"
    try:
        with two_machines():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces cannot be made: {getattr(error, 'stderr', None) or error}"


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines, node-a and node-b, with one network; whatever runs on them is killed at the end.

    As on many systems, each machine's own name means a loopback address on it.
    """
    mark, net = secrets.token_hex(3), secrets.randbelow(250) + 2
    machines = [
        Machine(namespace=f"pdr-{mark}-{letter}", name=f"node-{letter}", address=f"10.213.{net}.{last}")
        for last, letter in enumerate("ab", start=1)
    ]
    cable = [f"pdr{mark}{letter}" for letter in "ab"]
    with ExitStack() as stack:
        for machine in machines:
            _ip("netns", "add", machine.namespace)
            stack.callback(_remove, machine)
            _write_hosts(machine, machines)
        _ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for end, machine in zip(cable, machines, strict=True):
            _ip("link", "set", end, "netns", machine.namespace)
            inside = ("-n", machine.namespace)
            _ip(*inside, "addr", "add", f"{machine.address}/24", "dev", end)
            _ip(*inside, "link", "set", end, "up")
            _ip(*inside, "link", "set", "lo", "up")
        yield machines[0], machines[1]


def _write_hosts(machine: Machine, machines: Sequence[Machine]) -> None:
    folder = ETC / machine.namespace
    folder.mkdir(parents=True)
    others = [f"{other.address} {other.name}" for other in machines if other is not machine]
    lines = ["127.0.0.1 localhost", f"127.0.1.1 {machine.name}", *others]
    (folder / "hosts").write_text("\n".join(lines) + "\n")


def _remove(machine: Machine) -> None:
    machine.lose()
    shutil.rmtree(ETC / machine.namespace, ignore_errors=True)
    with suppress(OSError):
        ETC.rmdir()  # unless it holds others
    subprocess.run(["ip", "netns", "del", machine.namespace], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
