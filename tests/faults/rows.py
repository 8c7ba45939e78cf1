"""Rows of the fault table: the fault, its place, the promise, and a play that reports losses."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.scenes import Scene
from helpers.support import ROOT

from plugin.parent.resume import find_start
from plugin.run.folder import RunFolder

from .hostile_files import hostile_files
from .hostile_limits import hostile_limits
from .hostile_others import hostile_others
from .stage import Stage, last_line, not_the_same, run_programs, told

Play = Callable[[Stage], str]  # what was lost; empty when the promise was kept

HANG_S = 10
KILLS = 50
ROUND_STEPS = 60


@dataclass(frozen=True)
class Row:
    group: str  # as ROWS names it
    event: str
    phase: str
    promise: str
    play: Play
    tries: int = 1


def all_rows() -> list[Row]:
    rows = [*_hangs(), *_programs(), *_struck(), *_beside(), *_parents(), *_corrupt(), *_kills()]
    hostile = (*hostile_files(), *hostile_limits(), *hostile_others())
    rows += [Row("hostile", *row) for row in hostile]
    return rows


# --- a fault at a point of a run, reported and resumed from

# phase -> point of inject.py and the step at which it strikes
POINTS = {
    "load": ("load", 0),
    "step": ("step", 7),
    "eval": ("eval", 8),
    "save": ("save.optimizer", 8),
    "fuse": ("fuse", 12),
}
KILLED = r"worker died \(likely out of memory\): rank 0 ended by SIGKILL"
ENDS: dict[str, tuple[str, int, str]] = {  # event -> words, exit code, the line
    "raise": ("exception", 1, "no internal error, got RuntimeError: injected"),
    "kill": ("SIGKILL", 8, KILLED),
    "oom": ("out of memory (device)", 5, "CUDA out of memory"),
    "memory": ("out of memory (machine)", 5, "memory"),
    "disk": ("disk full (no space)", 7, "No space left on device"),
    "quota": ("disk full (quota)", 7, "File too large"),
    "nan": ("NaN", 6, "finite"),
}
NOT_THERE = {("quota", phase) for phase in ("load", "step", "eval")} | {
    ("nan", phase) for phase in ("load", "save", "fuse")
}
SAVES = ("save", "save.digests", "save.rename", "save.renamed", "save.remove")


def _struck() -> Iterator[Row]:
    for event, (words, code, line) in ENDS.items():
        for phase, (point, step) in POINTS.items():
            if (event, phase) not in NOT_THERE:
                promise = f"exit {code}, one line, none left; resumed: the unbroken run"
                yield Row(
                    event,
                    words,
                    phase,
                    promise,
                    _strike(f"{point}:{event}:{step}:0", code, line, step),
                )
    yield Row(
        "nan",
        "NaN in a gradient",
        "step",
        "the update is not made",
        _strike("gradient:nan:7:0", 6, "finite", 7),
    )
    for point in SAVES:
        step = 12 if point in ("save.renamed", "save.remove") else 8
        promise = "those before are whole, the part goes with a line"
        yield Row(
            "save", "SIGKILL", point, promise, _strike(f"{point}:kill:{step}:0", 8, KILLED, step)
        )
    two = ("--num_processes", 2, "--batch_size", 2)
    promise = "all ranks gone in 10 s, the cause is named"
    for event in ("raise", "kill", "oom"):
        words, code, line = ENDS[event]
        play = _strike(f"step:{event}:7:1", code, line.replace("rank 0", "rank 1"), 7, two)
        yield Row("ranks", f"{words} in rank 1 of 2", "step", promise, play)


def _strike(fault: str, code: int, line: str, step: int, more: tuple[object, ...] = ()) -> Play:
    def play(stage: Stage) -> str:
        folder = stage.folder(fault + "".join(map(str, more)))
        lost = told(stage.forks.run(folder, *stage.job, *more, fault=fault), code, line)
        if lost or not more:
            return lost or stage.goes_on(folder, step)
        again = stage.forks.run(folder, *stage.job, *more, "--resume", "true")
        return _near(again, stage.whole)

    return play


def _near(ours: Scene, theirs: Scene) -> str:
    """Compare losses within rounding: two processes add up in another order."""
    if ours.code:
        return f"resume: exit {ours.code}: {last_line(ours)}"
    return (
        ""
        if ours.losses() == pytest.approx(theirs.losses(), rel=1e-5)
        else f"losses {ours.losses()}, not {theirs.losses()}"
    )


def _hangs() -> Iterator[Row]:
    for phase, (point, step) in POINTS.items():
        yield Row(
            "hang",
            "hang",
            phase,
            "exit 9 with the stacks; resumed: the unbroken run",
            _hang(f"{point}:hang:{step}:0", step),
        )


def _hang(fault: str, step: int) -> Play:
    def play(stage: Stage) -> str:
        folder = stage.folder(fault)
        done = stage.forks.run(folder, *stage.job, "--hang_timeout_s", HANG_S, fault=fault)
        if done.code != 9 or not re.search(
            rf"error\[9\]: worker: expected progress within {HANG_S} s", done.err
        ):
            return f"exit {done.code}: {last_line(done)}"
        stacks = (
            (folder / "log.txt").read_text(encoding="utf-8").partition("--- stacks of rank 0")[2]
        )
        return stage.goes_on(folder, step) if "inject.py" in stacks else "no stacks in log.txt"

    return play


# --- optional parts of a run

NO_CURVES = r"warning: tb: .*; no more curves there, metrics.jsonl has them all"
NOT_ALL = r"warning: log_to_wandb: not everything arrived there; see .*wandb.log. The run itself is complete."
SITE = str(ROOT / "tests" / "faults" / "site")
KEY = "0123456789abcdef" * 2 + "01234567"
RELAYS: dict[
    str, tuple[Mapping[str, str], str]
] = {  # event -> environment that causes it, the warning
    "W&B without a key": (
        {},
        "warning: log_to_wandb: expected a W&B key in the environment or in netrc, got none",
    ),
    "W&B out of reach": ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, NOT_ALL),
    "W&B's process killed": ({"WANDB_MODE": "offline", "TRAINER_TEST_RELAY": "kill"}, NOT_ALL),
    "W&B's folder unwritable": ({"WANDB_MODE": "offline", "TRAINER_TEST_RELAY": "spoil"}, NOT_ALL),
}


def _beside() -> Iterator[Row]:
    promise = "one warning, and the undisturbed run"
    for phase in ("load", "step", "eval", "save"):
        point, step = POINTS[phase]
        yield Row(
            "board",
            "TensorBoard unwritable",
            phase,
            promise,
            _without(phase, NO_CURVES, fault=f"{point}:board:{step}:0"),
        )
    for event, (env, warning) in RELAYS.items():
        yield Row("wandb", event, "load", promise, _without(event, warning, env))


def _without(
    name: str, warning: str, relay: Mapping[str, str] | None = None, fault: str = ""
) -> Play:
    def play(stage: Stage) -> str:
        folder = stage.folder(f"without {name}")
        wandb = () if relay is None else ("--log_to_wandb", "true")
        env = {
            "HOME": str(folder.parent),
            "WANDB_API_KEY": "",
            "WANDB_MODE": "",
            "PYTHONPATH": SITE,
            **(relay or {}),
        }
        done = stage.forks.start(folder, *stage.job, *wandb, fault=fault, env=env).wait()
        if done.code or done.result["outcome"] != "done":
            return f"exit {done.code}: {last_line(done)}"
        said = [
            line
            for line in done.err.splitlines()
            if line.startswith("warning") or "Traceback" in line
        ]
        if len(said) != 1 or not re.match(warning, said[0]):
            return f"expected one warning, got {said}"
        return not_the_same(done, stage.whole)

    return play


# --- the parent


def _parents() -> Iterator[Row]:
    for phase, (point, step) in POINTS.items():
        promise = "ranks stop and save, the folder is locked meanwhile"
        yield Row(
            "parent", "parent killed", phase, promise, _orphan(f"{point}:parent:{step}:0", step)
        )
    for phase, (point, step) in POINTS.items():
        yield Row(
            "stop",
            "SIGTERM",
            phase,
            "saved, no failure; resumed: the unbroken run",
            _stop(f"{point}:stop:{step}:0", step),
        )


def _orphan(fault: str, step: int) -> Play:
    def play(stage: Stage) -> str:
        folder = stage.folder(fault)
        killed = stage.forks.run(folder, *stage.job, fault=fault)
        if killed.code != -9:
            return f"exit {killed.code}: {last_line(killed)}"
        with RunFolder(folder).locked(
            30, lambda line: None
        ):  # the rank finishes its step, saves and goes
            if list(folder.glob(".checkpoint-*.part")):
                return "half a checkpoint is left"
        return stage.goes_on(folder, step)

    return play


def _stop(fault: str, step: int) -> Play:
    def play(stage: Stage) -> str:
        folder = stage.folder(fault)
        ended = stage.forks.run(folder, *stage.job, fault=fault)
        wanted = "done" if step == 12 else "stopped"
        if (ended.code, ended.result["outcome"]) != (0, wanted):
            return f"exit {ended.code}, {ended.result['outcome']}: {last_line(ended)}"
        return stage.goes_on(folder, step)

    return play


# --- both programs for real


def _programs() -> Iterator[Row]:
    def killed(stage: Stage) -> str:
        folder = stage.folder("programs killed")
        lost = told(run_programs(folder, *stage.job, fault="save.rename:kill:8:0"), 8, KILLED)
        return lost or stage.goes_on(folder, 8)

    def raised(stage: Stage) -> str:
        folder = stage.folder("programs raised")
        two = ("--num_processes", 2, "--batch_size", 2)
        lost = told(
            run_programs(folder, *stage.job, *two, fault="step:raise:7:1"),
            1,
            "RuntimeError: injected",
        )
        return lost or _near(
            run_programs(folder, *stage.job, *two, "--resume", "true"), stage.whole
        )

    yield Row("programs", "SIGKILL, two programs", "save", "as in a fork", killed)
    yield Row(
        "programs", "exception in rank 1 of 2, three programs", "step", "as in a fork", raised
    )


# --- checkpoints that differ from what was written


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    file.write_bytes(content)


DAMAGES = {"truncated": _truncate, "one bit flipped": _flip, "deleted": Path.unlink}
FILES = (
    *(
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "digests.json",
        "config.json",
        "diffusion.json",
    ),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)


def _corrupt() -> Iterator[Row]:
    for number, name in enumerate(FILES):
        play = _broken(name, list(DAMAGES)[number % len(DAMAGES)])
        yield Row(
            "corrupt",
            "damaged checkpoint",
            name,
            "skipped with a reason, the next older one is used",
            play,
            len(DAMAGES),
        )


def _broken(name: str, gone_on_after: str) -> Play:
    """Expect each damage to be seen; resume from one of them."""

    def play(stage: Stage) -> str:
        files = {file.name for file in stage.whole.last_checkpoint().iterdir()}
        if files != set(FILES):
            return f"a checkpoint's files are {sorted(files)}: the table does not damage each"
        for damage, harm in DAMAGES.items():
            folder = stage.folder(f"{name} {damage}")
            shutil.copytree(stage.whole.folder, folder)
            harm(folder / stage.whole.last_checkpoint().name / name)
            said: list[str] = []
            start = find_start(RunFolder(folder), None, said.append)
            named = name in said[0] or name == "digests.json"  # a wrong digest names its file
            if start is None or start.step != 8 or len(said) != 1 or not named:
                return f"{damage}: {start}, {said}"
            if damage == gone_on_after and (lost := _goes_on_behind(stage, folder)):
                return f"{damage}: {lost}"
        return ""

    return play


def _goes_on_behind(stage: Stage, folder: Path) -> str:
    again = stage.forks.run(folder, *stage.job, "--resume", "true")
    if again.code or "checkpoint-12 is skipped: " not in again.err:
        return f"exit {again.code}: {again.err}"
    return stage.goes_on(folder, 12)


# --- fifty kills at any moment


def _kills() -> Iterator[Row]:
    promise = "at most save_steps lost each time; in the end the unbroken run, bit by bit"
    yield Row("rounds", "kill -9, seeded moments", "any", promise, _rounds, KILLS)


def _rounds(stage: Stage) -> str:
    """Kill runs until they end: a rank, or every fifth time the parent with its ranks."""
    length = ("--train_steps", ROUND_STEPS, "--save_total_limit", 1, "--fuse_model", "false")
    whole = stage.forks.run(stage.folder("rounds whole"), *stage.job, *length)
    moments, kills, runs = random.Random(11), 0, 0
    while kills < KILLS:
        runs += 1
        folder = stage.folder(f"rounds {runs}")
        ended = None
        while ended is None:
            running = stage.forks.start(folder, *stage.job, *length, "--resume", "true")
            if kills < KILLS and running.running(moments.uniform(0.1, 1.1 + 0.1 * (kills % 9))):
                running.kill(parent=not running.ranks() or kills % 5 == 4)
                kills += 1
                killed = running.wait()
                if "is skipped" in killed.err or killed.code not in (
                    8,
                    -9,
                    0,
                ):  # 0: the run ended just before
                    return f"kill {kills}: exit {killed.code}: {killed.err}"
            else:
                ended = running.wait()
        if ended.code:
            return f"kill {kills}: exit {ended.code}: {last_line(ended)}"
        if found := not_the_same(ended, whole):
            return f"after {kills} kills: {found}"
    return ""
