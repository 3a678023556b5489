"""The network interface that gloo uses between machines."""

import ipaddress
import os
import socket
from collections.abc import Mapping

import psutil

VARIABLE = "GLOO_SOCKET_IFNAME"
UNROUTED = "192.0.2.1"
"""An address of documentation (RFC 5737): only the default route leads to it."""


def interface_of_ranks(environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the interface through which this machine reaches that of rank 0; None to leave it to gloo.

    Gloo takes the address of the machine's own name, which on many systems is a loopback address: ranks on
    other machines would then connect to themselves and wait for the time limit. Nothing is chosen for ranks
    of one machine, or if the user has set ``GLOO_SOCKET_IFNAME``.

    Raises:
        ValueError: If no interface leads to other machines, or several may and none can be chosen.
    """
    ranks, here = (int(environment.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if ranks == here or environment.get(VARIABLE):
        return None
    leads = {address: name for name, addresses in _addresses().items() for address in addresses}
    # On the machine of rank 0 its name may mean loopback: the default route is then the best guess.
    for target in (environment["MASTER_ADDR"], UNROUTED):
        address = _own_address(target)
        if address in leads:
            return leads[address]
    names = sorted(set(leads.values()))
    if len(names) == 1:
        return names[0]
    raise ValueError(
        f"{ranks} ranks run on several machines, but the interface between them is not known: MASTER_ADDR "
        f"{environment['MASTER_ADDR']!r} leads through none of {', '.join(names) or '(no interface)'}. Set "
        f"{VARIABLE} to the interface on each machine."
    )


def _addresses() -> dict[str, list[str]]:
    """Returns the addresses of each interface that is up, without loopback and link-local ones."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return {
        name: [each.address for each in addresses if _leads_away(each)]
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
    }


def _leads_away(address: object) -> bool:
    family, text = getattr(address, "family", None), str(getattr(address, "address", ""))
    if family not in (socket.AF_INET, socket.AF_INET6):
        return False
    parsed = ipaddress.ip_address(text.partition("%")[0])
    return not (parsed.is_loopback or parsed.is_link_local)


def _own_address(target: str) -> str | None:
    """Returns this machine's address on the way to ``target``; None if there is no way. Sends nothing."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return None
