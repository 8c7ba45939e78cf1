"""Rows of the fault table: foreign entries of a run folder, and folders changed by others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from helpers.scenes import ENDLESS, LONGEST_S, Scene
from helpers.support import wait_until

from .compare import tensors_of
from .stage import Stage, last_line, not_the_same

PRECIOUS = 'my precious shell settings\n{"half": '

# (event, phase, promise, play), of the group `hostile`.
HostileRow = tuple[str, str, str, Callable[[Stage], str]]


def hostile_files() -> list[HostileRow]:
    refused = "refused by name, exit 2; nothing outside is touched"
    return [
        (".lock is a link", "new run", refused, _linked_lock),
        ("a stranger's run, its files links", "resume", refused, _linked_run),
        (
            "a user's data/ in a failed run's folder",
            "new run",
            "refused by name, exit 2; nothing is removed",
            _own_data,
        ),
        (
            "STOP, SAVE, SAMPLE are folders",
            "step",
            "each counts once, one warning each at most; exit 0",
            _requests,
        ),
        (
            "SIGKILL, a finished run that goes on",
            "fuse",
            "fused/ is whole until the new one is",
            _fused,
        ),
        (
            "digests.json names /dev/zero",
            "resume",
            "skipped with a reason, the next older one is used",
            _endless_digest,
        ),
    ]


def _refused(scene: Scene, words: str) -> str:
    if scene.code != 2 or words not in scene.err:
        return f"exit {scene.code}: {last_line(scene)}"
    return ""


def _victim(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    victim = folder.parent / "victim"
    victim.write_text(PRECIOUS, encoding="utf-8")
    return victim


def _linked_lock(stage: Stage) -> str:
    folder = stage.folder("hostile lock")
    victim = _victim(folder)
    folder.mkdir()
    (folder / ".lock").symlink_to(victim)
    lost = _refused(stage.forks.run(folder, *stage.job), f".lock, which is a link to {victim}")
    return lost or (
        "" if victim.read_text(encoding="utf-8") == PRECIOUS else "the link's target was written"
    )


def _linked_run(stage: Stage) -> str:
    folder = stage.folder("hostile run")
    victim = _victim(folder)
    shutil.copytree(stage.whole.folder, folder)
    for name in ("events.jsonl", "log.txt", ".lock", ".heartbeat-0"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim)
    os.rename(folder / "tb", folder.parent / "outside")
    (folder / "tb").symlink_to(folder.parent / "outside")
    before = sorted(path.name for path in (folder.parent / "outside").iterdir())
    again = stage.forks.run(folder, *stage.job, "--resume", "true", "--train_steps", 14)
    for name in ("events.jsonl", "log.txt", ".lock", ".heartbeat-0", "tb"):
        if lost := _refused(again, f"with {name}, which is a link to"):
            return lost
    if victim.read_text(encoding="utf-8") != PRECIOUS:
        return "a link's target was written"
    return (
        ""
        if sorted(path.name for path in (folder.parent / "outside").iterdir()) == before
        else "curves went outside"
    )


def _own_data(stage: Stage) -> str:
    folder = stage.folder("hostile data")
    failed = stage.forks.run(folder, *stage.job, fault="load:raise:0:0")
    if failed.code != 1:
        return f"exit {failed.code}: {last_line(failed)}"
    (folder / "data" / "mine.jsonl").write_text("{}\n", encoding="utf-8")
    lost = _refused(
        stage.forks.run(folder, *stage.job), "with data/mine.jsonl, which no run has written"
    )
    if lost or not (folder / "data" / "mine.jsonl").exists() or not (folder / "log.txt").exists():
        return lost or "something was removed"
    (folder / "data" / "mine.jsonl").unlink()
    return not_the_same(stage.forks.run(folder, *stage.job), stage.whole)


def _requests(stage: Stage) -> str:
    folder = stage.folder("hostile requests")
    running = stage.forks.start(folder, *stage.job, *ENDLESS)

    def steps() -> int:
        progress = folder / "progress.json"
        return json.loads(progress.read_text(encoding="utf-8"))["step"] if progress.exists() else 0

    wait_until(lambda: steps() >= 2, "two steps", deadline_s=LONGEST_S)
    for name in ("SAVE", "SAMPLE"):
        (folder / name).mkdir()
        (folder / name / "mine").touch()
    wait_until(lambda: list(folder.glob("checkpoint-*")), "the save", deadline_s=LONGEST_S)
    at = steps()
    wait_until(lambda: steps() > at + 4, "steps after it", deadline_s=LONGEST_S)
    (folder / "STOP").mkdir()
    ended = running.wait()
    warned = [line for line in ended.err.splitlines() if line.startswith("warning")]
    saved = len(list(folder.glob("checkpoint-*")))
    if (
        ended.code
        or ended.result["outcome"] != "stopped"
        or len(warned) != 2
        or saved != 2
        or (folder / "STOP").exists()
    ):
        return f"exit {ended.code}, {ended.result['outcome']}, {saved} checkpoints, {warned}: {last_line(ended)}"
    return ""


def _fused(stage: Stage) -> str:
    folder = stage.folder("hostile fused")
    shutil.copytree(stage.whole.folder, folder)
    old = tensors_of(folder / "fused")
    longer = (*stage.job, "--resume", "true", "--train_steps", 14)
    for fault in ("step:kill:13:0", "fuse:kill:14:0"):
        killed = stage.forks.run(folder, *longer, fault=fault)
        if killed.code != 8:
            return f"{fault}: exit {killed.code}: {last_line(killed)}"
        if tensors_of(folder / "fused") != old:
            return f"{fault}: fused/ is not what it was"
    done = stage.forks.run(folder, *longer)
    if done.code or tensors_of(folder / "fused") == old:
        return f"exit {done.code}: {last_line(done)}"
    return ""


def _endless_digest(stage: Stage) -> str:
    folder = stage.folder("hostile digests")
    shutil.copytree(stage.whole.folder, folder)
    file = folder / stage.whole.last_checkpoint().name / "digests.json"
    digests = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({"/dev/zero": "00" * 16, **digests}), encoding="utf-8")
    again = stage.forks.run(folder, *stage.job, "--resume", "true")
    if "checkpoint-12 is skipped: /dev/zero is missing" not in again.err:
        return f"exit {again.code}: {last_line(again)}"
    return not_the_same(again, stage.whole)
