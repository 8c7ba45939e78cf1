"""What a person reads at a terminal: lines to copy, and an ending that claims nothing."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from plugin.hosts.folder import FolderHost
from plugin.job import Outcome
from plugin.launch import LaunchPlan
from plugin.run_folder import RunFolder
from plugin.summary import outcome_line


def test_paths_with_spaces_can_be_copied_into_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "my runs" / "é 1")
    (folder / "fused").mkdir(parents=True)
    host = FolderHost()
    host.started(folder, LaunchPlan((), ({},), (), ""))
    host.finished(folder, Outcome("done", 0, result={"outcome": "done", "steps": 3, "seconds": 1}))
    out, err = capsys.readouterr()
    copied = {line.split()[0].rstrip(":"): shlex.split(line)[-1] for line in (out + err).splitlines()}
    assert copied["chat"] == str(folder.path)
    assert copied["curves"] == str(folder / "tb")
    assert copied["stop"] == str(folder / "STOP")


def test_a_run_ended_by_a_second_signal_claims_no_steps() -> None:
    assert outcome_line(Outcome("stopped", 143)) == "stopped: ended at once; what was saved before is whole"
    assert outcome_line(Outcome("stopped", 0, result={"steps": 0})) == "stopped: 0 steps in 0 s"
