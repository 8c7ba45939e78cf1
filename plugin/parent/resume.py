"""Resuming a run: its checkpoint, the checks against it, and the run's files cut back to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.digests import unlisted, why_broken
from ..base.errors import JobError, Problem
from ..base.files import open_plain, recover, remove, set_aside, write_whole
from ..config.params import Params
from ..config.rules.resume import MAY_CHANGE, NOT_OF_PACKS
from ..run.folder import RunFolder, to_json
from ..run.owned import half_written
from ..run.record import NotARecord
from ..run.state import DRAWS, STATE, read_state


@dataclass(frozen=True)
class ResumeTarget:
    """The run and the checkpoint that `resume` names."""

    run_dir: Path | None  # None: a new run
    checkpoint: Path | None  # None: the run's last one


def resume_target(params: Params) -> ResumeTarget:
    """Return the run that `resume` names. Raises JobError (exit 2) naming resume."""
    if params.resume == "false":
        return ResumeTarget(None, None)
    given = Path(params.run_dir).expanduser().absolute() if params.run_dir else None
    if params.resume == "true":
        if given is None:
            raise JobError(
                Problem(
                    "resume",
                    "a run_dir to resume",
                    "true without one",
                    "Name the run folder in run_dir.",
                )
            )
        return ResumeTarget(given, None)
    path = Path(params.resume).expanduser().absolute()
    if not path.is_dir():
        raise JobError(
            Problem(
                "resume",
                "true, false, a run folder or a checkpoint in one",
                f"{path}, which is no folder",
            )
        )
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", path.name) is not None
    run_dir = path.parent if is_checkpoint else path
    if given not in (None, run_dir):
        raise JobError(
            Problem("resume", f"a folder of run_dir ({given})", str(path), "Leave run_dir empty.")
        )
    return ResumeTarget(run_dir, path if is_checkpoint else None)


@dataclass(frozen=True)
class Start:
    """The checkpoint from which a run is resumed."""

    checkpoint: Path
    step: int


def find_start(folder: RunFolder, named: Path | None, say: Callable[[str], None]) -> Start | None:
    """Return the newest intact checkpoint, or the named one; None if the run has written none.

    Broken checkpoints are logged and skipped. Raises JobError (exit 2) when none is intact.
    """
    candidates = [named] if named else folder.checkpoints()[::-1]
    for path in candidates:
        reason = why_broken(path) or why_stateless(path)
        if not reason:
            return Start(path, int(path.name.removeprefix("checkpoint-")))
        say(f"resume: {path.name} is skipped: {reason}")
    if not candidates:
        return None
    fix = "Start a new run in another run_dir."
    raise JobError(
        Problem(
            "resume",
            "an intact checkpoint that this program wrote",
            f"{candidates[0]} and no other",
            fix,
        )
    )


def why_stateless(checkpoint: Path) -> str:
    """Describe what is wrong with the state in a checkpoint; empty if nothing is."""
    if not (checkpoint / STATE).is_file():
        return f"it has no {STATE}"
    try:
        read_state(checkpoint)
    except NotARecord:
        return f"{STATE} is not one of this program's"
    except (OSError, ValueError, RecursionError) as error:
        return f"{STATE} cannot be read: {error}"
    return ""


def parameter_problems(
    old: Mapping[str, Any], params: Params, *, packs: bool
) -> tuple[list[Problem], list[str]]:
    """Compare a run's parameters with those to resume it with; `packs`: its steps are packs.

    Returns (problems, log lines on what changes).
    """
    new, problems, changes = params.as_json(), [], []
    forbidden_here = NOT_OF_PACKS if packs else set[str]()
    for name, value in new.items():
        if name not in old or old[name] == value or name in ("run_dir", "resume", "machine_rank"):
            continue
        if name in MAY_CHANGE - forbidden_here:
            changes.append(f"resume: {name} is {value!r} from here, {old[name]!r} before")
        else:
            fix = "Leave it as it was, or start a new run from the checkpoint as its model_name."
            problems.append(
                Problem(name, f"{old[name]!r}, as this run was trained so far", repr(value), fix)
            )
    return problems, changes


def state_problems(start: Start, params: Params, ranks: int) -> list[Problem]:
    """List what keeps a checkpoint from being resumed: its draws, its step size, the steps left."""
    state = read_state(start.checkpoint)
    documents = params.batch_size * params.gradient_accumulation_steps * ranks
    problems: list[Problem] = []
    if state.draws != DRAWS and (params.lora_dropout > 0 or params.optim == "adamw_8bit"):
        expected = "a run whose dropout and rounding this version can repeat"
        fix = "Start a new run from the checkpoint as its model_name."
        problems.append(Problem("resume", expected, "one of version 0.4 or earlier", fix))
    if documents != state.step_size:
        got = f"{params.batch_size} x {params.gradient_accumulation_steps} x {ranks} processes = {documents}"
        fix = "Change batch_size or gradient_accumulation_steps so that a step stays what it was."
        problems.append(
            Problem("batch_size", f"{state.step_size} documents a step, as before", got, fix)
        )
    in_steps = params.num_train_epochs == 0 and params.train_tokens == 0
    if in_steps and params.train_steps < start.step:
        problems.append(
            Problem(
                "train_steps",
                f"at least the {start.step} steps already done",
                str(params.train_steps),
            )
        )
    return problems


def resume_problems(
    folder: RunFolder, start: Start, params: Params, ranks: int, data: str
) -> tuple[list[Problem], list[str]]:
    """Return (reasons against resuming with these parameters, log lines on what changes)."""
    try:
        before = folder.read_run()
        packs = any(start.checkpoint.glob("stream-*.safetensors"))
        problems, changes = parameter_problems(before.params, params, packs=packs)
    except (OSError, ValueError) as error:
        return [Problem("resume", "a run folder with its run.json", f"{folder.path}: {error}")], []
    if before.environment.data != data:
        fix = "Put the old data back, or start a new run from the checkpoint as its model_name."
        problems.append(
            Problem("dataset_name", "the data this run was trained on so far", "other content", fix)
        )
    return problems + state_problems(start, params, ranks), changes


def resume(
    folder: RunFolder,
    checkpoint: Path | None,
    params: Params,
    ranks: int,
    data: str,
    say: Callable[[str], None],
) -> Start | None:
    """Cut a run folder back to its checkpoint; None when it holds none yet.

    `checkpoint`: the one that `resume` names; None: the last. `data`: the digest of the data.
    Raises JobError with every reason against it.
    """
    # machine 0 has the checkpoints
    of_run = RunFolder(folder.path.parent) if params.machine_rank else folder
    start = find_start(of_run, checkpoint, say)
    if start is None:
        say(f"resume: {folder.path} holds no checkpoint yet; the run starts at step 0")
        return None
    found, changes = resume_problems(folder, start, params, ranks, data)
    if found:
        raise JobError(*found)
    say(f"resume: resuming from step {start.step}")
    for line in changes:
        say(line)
    cut_back(folder, start.step, say)
    return start


def cut_back(folder: RunFolder, step: int, say: Callable[[str], None]) -> None:
    """Remove what the run wrote after `step`: later metrics and samples, half-written folders.

    Intact checkpoints of later steps, left when an older one is named, are renamed instead. An
    adapter and a fused model stay until the next ones replace them.
    """
    for part in half_written(folder.path):
        say(f"resume: {part.name} was only half written; removed")
        remove(part)
    for name in ("adapter", "fused"):
        recover(folder / name)
    for later in folder.checkpoints():
        if int(later.name.removeprefix("checkpoint-")) <= step:
            continue
        if why_broken(later) and not unlisted(later):
            say(f"resume: {later.name} is broken; removed")
            remove(later)
            continue
        earlier = folder / f"replaced-{later.name}"
        if earlier.is_dir() and not earlier.is_symlink() and not unlisted(earlier):
            remove(earlier)
        say(f"resume: {later.name} is now {set_aside(later).name}")
    latest: dict[str, Any] = {}
    for line in _keep_lines(folder / "metrics.jsonl", step):
        latest |= line
    if latest:
        write_whole(folder / "metrics.json", to_json(latest) + "\n")
    _keep_lines(folder / "samples.jsonl", step)
    _end_last_line(folder / "events.jsonl")


def _end_last_line(path: Path) -> None:
    """Cut off the half line that a kill leaves; the next line would be appended to it."""
    if path.exists():
        with open(path, "rb+", opener=open_plain) as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _keep_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Rewrite a .jsonl file with the lines of steps up to `step`, without a kill's half line."""
    kept: list[dict[str, Any]] = []
    if not path.exists():
        return kept
    for text in path.read_text(encoding="utf-8").split(
        "\n"
    ):  # a text may hold other line separators
        try:
            line = json.loads(text)
            if line["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):  # half a line, or a foreign one
            continue
    write_whole(path, "".join(to_json(line) + "\n" for line in kept))
    return kept
