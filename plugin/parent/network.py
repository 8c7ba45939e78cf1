"""Network interface that leads to the other machines of a run."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import psutil

from ..base.errors import JobError, Problem

FIELD = "main_process_ip"


def interface_to(address: str) -> str:
    """Return the name of the interface towards machine 0; empty if the system does not know it.

    Nothing is sent. gloo would take the interface of the host's own name; on many machines that is
    the loopback, where the others wait endlessly. Raises JobError (exit 2) naming main_process_ip:
    no route leads there, or the name means this machine only here.
    """
    try:
        family, *_, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            own = probe.getsockname()[0]
    except OSError as error:
        raise JobError(
            Problem(
                FIELD,
                "an address that this machine reaches",
                f"{address}: {error.strerror or error}",
            )
        ) from error
    if _is_loopback(own) and not _is_loopback(address):
        got = f"{address}, which is {target[0]} on this machine"
        raise JobError(
            Problem(FIELD, "machine 0's address in the network", got, "Give the address itself.")
        )
    for name, addresses in psutil.net_if_addrs().items():
        if any(
            found.address == own or (_is_loopback(own) and _is_loopback(found.address))
            for found in addresses
        ):
            return name
    return ""


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text).is_loopback
    except ValueError:  # a name, or the address of a network card
        return False
