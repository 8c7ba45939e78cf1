"""Check that the form starts: its answer, and its end when a person stops it."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.support import pairs, processes_naming, wait_until, write_rows

from plugin.base.errors import JobError
from plugin.studio.watch.programs import checked, end_program

pytestmark = pytest.mark.end_to_end


def test_a_check_answers_with_problems_of_fields(tmp_path: Path) -> None:
    values = {"model_name": str(tmp_path / "none"), "dataset_name": str(tmp_path / "none.jsonl")}
    answer = asyncio.run(checked(values))
    assert {problem["field"] for problem in answer["problems"]} == {"model_name", "dataset_name"}
    assert "launch" in answer["plan"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_check_leaves_no_program(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its torch program, which would never end by itself, ends with it."""
    endless = "import sys, time\nif 'plugin.worker' in sys.orig_argv: time.sleep(1e6)\n"
    (tmp_path / "sitecustomize.py").write_text(endless)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    data = write_rows(tmp_path / "d.jsonl", pairs())
    values = {"model_name": str(tmp_path / "none"), "dataset_name": str(data)}
    begun: list[Process] = []

    async def start_and_stop() -> None:
        task = asyncio.ensure_future(checked(values, started=begun.append))
        while not (begun and torch_programs(begun[0].pid)):
            await asyncio.sleep(0.05)
        children.extend(torch_programs(begun[0].pid))
        if number == signal.SIGINT:
            end_program(begun[0])
        else:
            begun[0].kill()
        await task

    children: list[int] = []
    with pytest.raises(JobError, match="check: expected an answer"):
        asyncio.run(start_and_stop())
    wait_until(lambda: not set(children) & set(processes_naming("--check")), "its child has ended")


def torch_programs(parent: int) -> list[int]:
    """Return the children of a process that have begun to be the program of torch."""
    return [pid for pid in processes_naming("plugin.worker") if parent_of(pid) == parent]


def parent_of(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
