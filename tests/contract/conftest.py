"""Hosts of the contract suite, each with its own workspace in a path with unicode and a space."""

from __future__ import annotations

from pathlib import Path

import pytest

from .drivers import CONTRACT, FolderDriver, Host, LabDriver, TlabDriver

HOSTS = {"folder": FolderDriver, "tlab": TlabDriver, "lab": LabDriver}
# The licence of the real SDK keeps it out of the environment that `make test` uses, and
# test_two_programs.py drives the folder there.
PARAMS = [
    name if name == "tlab" else pytest.param(name, marks=pytest.mark.contract) for name in HOSTS
]


@pytest.fixture(scope="module", params=PARAMS)
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pairs_file: Path
) -> Host:
    if request.param == "lab":
        assert (CONTRACT / "lab").is_dir(), "run `make contract`, which installs the SDK"
    return HOSTS[request.param](tmp_path_factory.mktemp("höst s"), {"toy_ds": pairs_file})
