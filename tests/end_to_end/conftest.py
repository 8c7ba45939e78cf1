"""Fixtures of the studio's tests: a browser, and a studio of an empty root."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from helpers.support import processes_naming

if TYPE_CHECKING:
    from helpers.browser import Studio
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Yield a studio of an empty root, and end what it has started."""
    from helpers.browser import running_studio

    root = tmp_path_factory.mktemp("studio") / "root"
    with running_studio(root) as found:
        yield found
    for pid in processes_naming(str(root)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from helpers.browser import chromium

    with chromium() as found:
        yield found
