"""Stage of the fault table: one small job, its undisturbed run, and the checks after a fault."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from helpers.scenes import LONGEST_S, Scene
from helpers.support import ERROR, ROOT, TINY_CONFIG, pairs, run_main, write_rows

from plugin.base.digests import why_broken
from plugin.run.folder import RunFolder

from .compare import differences
from .forks import Forks
from .inject import FAULT

SAVE_STEPS = 4
WITHIN_S = 10.0  # of the fault, the parent has reported it


@dataclass(frozen=True)
class Stage:
    forks: Forks
    root: Path
    job: tuple[object, ...]
    whole: Scene  # the undisturbed run

    def folder(self, name: str) -> Path:
        return self.root / re.sub(r"[^a-z0-9]+", "-", name.lower()) / "run"

    def goes_on(self, folder: Path, struck_at: int) -> str:
        """Return "" if the run resumes, whatever the fault left, to its undisturbed end.

        Otherwise return the difference.
        """
        try:
            with RunFolder(folder).locked(0, lambda line: None):  # a remaining rank holds the lock
                broken = [
                    f"{path.name}: {why_broken(path)}"
                    for path in RunFolder(folder).checkpoints()
                    if why_broken(path)
                ]
        except ValueError as error:
            return f"a process is left: {error}"
        if broken:
            return broken[0]
        saved, parts = (
            list(folder.glob("checkpoint-*")),
            [part.name for part in folder.glob(".*.part")],
        )
        again = self.forks.run(folder, *self.job, "--resume", "true")
        if again.code:
            return f"resume: exit {again.code}: {last_line(again)}"
        for part in parts if saved else ():  # without a checkpoint the run begins anew
            if (
                f"resume: {part} was only half written; removed" not in again.err
                or (folder / part).exists()
            ):
                return f"nothing was said of {part}"
        found = re.search(r"resume: resuming from step (\d+)", again.err)
        start = int(found[1]) if found else 0
        if struck_at - start > SAVE_STEPS:
            return f"{struck_at - start} steps lost"
        return not_the_same(again, self.whole)


def not_the_same(ours: Scene, theirs: Scene) -> str:
    found = differences(ours, theirs)
    return f"not the unbroken run's: {', '.join(found)}" if found else ""


def last_line(scene: Scene) -> str:
    return (scene.err.strip().splitlines() or ["nothing was printed"])[-1]


def open_stage(forks: Forks, root: Path) -> Stage:
    config = root / "config.json"
    config.write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    data = write_rows(root / "pairs.jsonl", pairs())
    model = (
        "--model_config",
        config,
        "--dataset_name",
        data,
        "--max_length",
        64,
        "--learning_rate",
        "3e-3",
    )
    length = (
        "--train_steps",
        12,
        "--save_steps",
        SAVE_STEPS,
        "--eval_steps",
        4,
        "--logging_steps",
        3,
        "--batch_size",
        4,
    )
    job = (*model, *length, "--train_device", "cpu")
    whole = forks.run(root / "whole" / "run", *job)
    assert whole.code == 0, whole.err
    return Stage(forks, root, job, whole)


def told(scene: Scene, code: int, line: str) -> str:
    """Return "" if the run ended with `code` and one line that holds `line`, else the difference.

    The line is on stderr and in run.json, soon after the fault.
    """
    if not (struck := scene.folder.with_name(f"{scene.folder.name}.struck")).exists():
        return f"the fault did not strike: exit {scene.code}, {last_line(scene)}"
    if scene.code != code:
        return f"exit {scene.code} instead of {code}: {last_line(scene)}"
    lines = [one for one in scene.err.splitlines() if ERROR.match(one)]
    if len(lines) != 1 or not re.search(line, lines[0]):
        return f"expected one line with {line!r}, got {lines}"
    result = scene.result
    if (result["outcome"], result["code"], result["error"]["field"]) != (
        "failed",
        code,
        ERROR.match(lines[0])[2],
    ):
        return f"run.json says {result['outcome']}, {result['code']}, {result['error']}"
    took = (scene.folder / "run.json").stat().st_mtime - struck.stat().st_mtime
    return "" if took < WITHIN_S else f"told after {took:.1f} s"


def run_programs(folder: Path, *args: object, fault: str = "") -> Scene:
    """Run both programs for real; a fault reaches the worker through sitecustomize.py."""
    env = {
        "TRAINER_TEST_PATH": str(ROOT / "tests"),
        "PYTHONPATH": str(ROOT / "tests/faults/site"),
        FAULT: fault,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    done: subprocess.CompletedProcess[str] = run_main(
        "train", *args, "--run_dir", folder, env=env, timeout_s=LONGEST_S
    )
    return Scene(folder, done.returncode, done.stdout, done.stderr)
