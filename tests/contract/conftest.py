"""Hosts that the contract is put to, each with a workspace of its own in a path with unicode and a space."""

from __future__ import annotations

from pathlib import Path

import pytest

from .drivers import FolderDriver, Host, TlabDriver

HOSTS = {"folder": FolderDriver, "tlab": TlabDriver}


@pytest.fixture(scope="module", params=HOSTS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pairs_file: Path) -> Host:
    return HOSTS[request.param](tmp_path_factory.mktemp("höst s"), {"toy_ds": pairs_file})
