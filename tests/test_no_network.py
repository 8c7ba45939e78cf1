"""The suite's own promise: no test reaches a network."""

from __future__ import annotations

import os
import socket

import pytest

SOMEWHERE = ("192.0.2.1", 80)  # TEST-NET-1: nobody is there


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_a_connection_to_another_machine_is_refused(method: str) -> None:
    with socket.socket() as probe, pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        getattr(probe, method)(SOMEWHERE)


def test_create_connection_and_name_lookups_are_refused() -> None:
    with pytest.raises(AssertionError, match="huggingface"):
        socket.create_connection(("huggingface.co", 443), timeout=5)
    with pytest.raises(AssertionError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 80)


def test_loopback_and_unix_sockets_work(tmp_path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert client.getpeername() == server.getsockname()
    path = os.path.relpath(tmp_path / "s")  # a unix path holds about 100 bytes
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)


def test_children_are_kept_off_the_hub_and_the_gpu() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["OMP_NUM_THREADS"] == "1"
