"""The interface on which several machines meet; test_life.py has a real network."""

from __future__ import annotations

import socket
from typing import Any

import psutil
import pytest

from plugin.base.errors import JobError
from plugin.parent.network import interface_to

LOOPBACK = next(
    name
    for name, found in psutil.net_if_addrs().items()
    if any(one.address == "127.0.0.1" for one in found)
)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_an_address_of_the_loopback_is_reached_by_it(address: str) -> None:
    assert interface_to(address) == LOOPBACK


def resolved(monkeypatch: pytest.MonkeyPatch, to: object) -> None:
    def look_up(*_: object, **__: object) -> Any:
        if isinstance(to, Exception):
            raise to
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (to, 9))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_a_name_that_is_this_machine_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Debian's /etc/hosts: machine 0 would wait on its loopback for the others."""
    resolved(monkeypatch, "127.0.1.1")
    with pytest.raises(
        JobError,
        match=r"main_process_ip: expected machine 0's address in the network, got node-a, which is 127\.0\.1\.1",
    ):
        interface_to("node-a")


def test_a_name_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    with pytest.raises(
        JobError,
        match="main_process_ip: expected an address that this machine reaches, got nodea: Name or service",
    ):
        interface_to("nodea")
