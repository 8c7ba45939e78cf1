"""Fixtures of every test: no network, no GPU, one thread, tiny inputs made once a session."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.forks import Forks
from helpers.support import TINY_CONFIG, pairs, write_rows

# Before anything imports torch or a hub client, and inherited by every child.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_COLOR": "1",
}
os.environ.pop("PYTHONPATH", None)

RUNS = {"forks", "finished", "run_copy"}  # fixtures that train with both programs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of a full run: those of end_to_end/, and those that use a run's fixtures."""
    for item in items:
        runs = RUNS & set(getattr(item, "fixturenames", ()))
        if runs or {"end_to_end", "contract"} & set(item.path.parts):
            item.add_marker("end_to_end")


class NetworkBlocked(AssertionError):
    """A test tried to use the network; not an OSError, which libraries catch."""


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    return host in (None, "", "localhost", "::1") or (
        isinstance(host, str) and host.startswith("127.")
    )


def _check(connection: socket.socket, address: Any) -> None:
    if connection.family != socket.AF_UNIX and not _is_local(address[0]):
        raise NetworkBlocked(f"tests use no network; a connection to {address} was tried")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Allow loopback and unix sockets only, names included; HF_HUB_OFFLINE guards children.

    pytest-socket 0.8.1 guards `connect` alone: `connect_ex` and the lookup of names pass.
    """
    connect, connect_ex, getaddrinfo = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _check(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _check(self, address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if not _is_local(host):
            raise NetworkBlocked(f"tests use no network; the name {host!r} was looked up")
        return getaddrinfo(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a config.json of a ModernBERT with 40 thousand weights."""
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs())


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """Save a seeded tiny ModernBertForMaskedLM and a tokenizer trained on the pairs."""
    import torch
    from helpers.tiny import new_model

    from plugin.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny_bert"
    tokenizer = train_tokenizer(
        (text for row in pairs() for text in row.values()), TINY_CONFIG["vocab_size"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = new_model(str(tiny_config), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model_copy(tiny_bert: Path, tmp_path: Path) -> Path:
    """Copy the tiny model, to be broken."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Yield a starter of `main.py train` runs that need no imports of their own."""
    with Forks() as running:
        yield running


@pytest.fixture(scope="session")
def four_steps(tiny_config: Path, pairs_file: Path) -> tuple[object, ...]:
    """Return the arguments of a job of four steps and two checkpoints."""
    model = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        pairs_file,
        "--max_length",
        64,
        "--train_device",
        "cpu",
    )
    return (
        *model,
        "--train_steps",
        4,
        "--save_steps",
        2,
        "--eval_strategy",
        "no",
        "--batch_size",
        4,
    )


@pytest.fixture(scope="session")
def finished(forks: Forks, four_steps: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = forks.run(tmp_path_factory.mktemp("finished") / "run", *four_steps)
    assert done.code == 0, done.err
    return done.folder


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """Copy a finished run of four steps with checkpoints 2 and 4 and a fused model."""
    return Path(shutil.copytree(finished, tmp_path / "copy" / "run"))


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Yield a file outside of the run, and assert that it stays unchanged."""
    path, text = tmp_path / "victim", 'my precious shell settings\n{"half": '
    path.write_text(text)
    yield path
    assert path.read_text() == text
