"""Which interface gloo is given for ranks on several machines."""

import socket
from types import SimpleNamespace

import psutil
import pytest

from train.interfaces import VARIABLE, interface_of_ranks

SEVERAL = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def _machine(monkeypatch: pytest.MonkeyPatch, interfaces: dict[str, str], way: dict[str, str]) -> None:
    """A machine with these addresses; ``way``: its own address on the way to a target."""
    found = {name: [SimpleNamespace(family=socket.AF_INET, address=ip)] for name, ip in interfaces.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    up = psutil.net_if_stats()["lo"]
    monkeypatch.setattr(psutil, "net_if_stats", lambda: dict.fromkeys(interfaces, up))
    monkeypatch.setattr("train.interfaces._own_address", way.get)


@pytest.mark.parametrize("changes", [{"LOCAL_WORLD_SIZE": "4"}, {VARIABLE: "mine"}])
def test_nothing_is_chosen_for_one_machine_or_against_the_user(changes: dict[str, str]):
    assert interface_of_ranks(SEVERAL | changes) is None


def test_the_interface_is_the_one_that_leads_to_rank_zero(monkeypatch: pytest.MonkeyPatch):
    _machine(
        monkeypatch, {"lo": "127.0.0.1", "eth0": "10.0.0.2", "ib0": "10.9.0.2"}, {"10.9.0.1": "10.9.0.2"}
    )
    assert interface_of_ranks(SEVERAL | {"MASTER_ADDR": "10.9.0.1"}) == "ib0"


def test_where_the_name_of_rank_zero_means_loopback_the_default_route_or_the_only_interface_counts(
    monkeypatch: pytest.MonkeyPatch,
):
    two = {"lo": "127.0.0.1", "eth0": "10.0.0.2", "ib0": "10.9.0.2"}
    _machine(monkeypatch, two, {"node-a": "127.0.1.1", "192.0.2.1": "10.0.0.2"})
    assert interface_of_ranks(SEVERAL | {"MASTER_ADDR": "node-a"}) == "eth0"
    _machine(monkeypatch, {"lo": "127.0.0.1", "ib0": "10.9.0.2"}, {"node-a": "127.0.1.1"})
    assert interface_of_ranks(SEVERAL | {"MASTER_ADDR": "node-a"}) == "ib0"
    _machine(monkeypatch, two, {"node-a": "127.0.1.1"})
    with pytest.raises(ValueError, match=r"leads through none of eth0, ib0\. Set GLOO_SOCKET_IFNAME"):
        interface_of_ranks(SEVERAL | {"MASTER_ADDR": "node-a"})
