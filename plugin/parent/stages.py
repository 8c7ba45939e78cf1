"""Stages of one file: complete runs one after another, each from the last one's final checkpoint.

RUN_DIR/stages.json records the list. What a stage has reached is read from its own run.json, so that
a kill at any moment, also between two stages, leaves nothing to repair.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..base.errors import Code, JobError, Problem, print_problems
from ..base.redact import redact
from ..config.fields import yes_or_no
from ..config.params import Params
from ..config.parse import Parsed
from ..config.rules.stage import makes_packs
from ..config.stages import Stage, field_of, prefixed
from ..run.events import Event
from ..run.folder import STOP, RunFolder
from ..run.lock import LOCK_WAIT_S
from ..run.outcome import Outcome, Result
from ..run.owned import LOCK
from ..run.stages_file import (
    STAGES_FILE,
    StageRecord,
    StagesFile,
    State,
    read_stages,
    write_stages,
)
from .check import Examined, examine
from .host import Host
from .launch import LaunchPlan
from .paths import new_run_dir, with_full_paths
from .resume import parameter_problems
from .train import check_inputs, stop_signals, train_job

LENGTHS = ("train_steps", "num_train_epochs", "train_tokens")


@dataclass(frozen=True)
class StagesOutcome:
    """End of a run of stages: that of the last stage that ran, and the record of all."""

    run_dir: Path
    outcome: Outcome
    record: StagesFile


def run_dir_of_stages(asked: Mapping[str, str], adaptor_name: str) -> tuple[Path, bool]:
    """Return (the folder of a run of stages, whether it is resumed).

    `asked`: run_dir and resume, as far as they are given. Raises JobError (exit 2).
    """
    resume, run_dir = yes_or_no(asked.get("resume") or "false"), asked.get("run_dir", "")
    if resume == "false":
        return new_run_dir(run_dir, adaptor_name), False
    if resume != "true":
        run_dir = run_dir or asked["resume"]
    if not run_dir or not (Path(run_dir).expanduser() / STAGES_FILE).is_file():
        expected = f"a run_dir with {STAGES_FILE} to resume"
        raise JobError(Problem("resume", expected, run_dir or "true without one"))
    return Path(run_dir).expanduser().absolute(), True


class StageHost:
    """A host of one stage: STOP in the folder of all stages stops it, and its outcome is kept."""

    def __init__(self, host: Host, run: RunFolder):
        self._host, self._run = host, run
        self.stop_grace_s = host.stop_grace_s
        self.outcome: Outcome | None = None

    def started(self, folder: RunFolder, plan: LaunchPlan) -> None:
        self._host.started(folder, plan)

    def line(self, text: str) -> None:
        self._host.line(text)

    def event(self, event: Event) -> None:
        self._host.event(event)

    def stop_wanted(self) -> bool:
        return self._host.stop_wanted() or self._run.asked(STOP)

    def finished(self, folder: RunFolder, outcome: Outcome) -> None:
        self.outcome = outcome
        self._host.finished(folder, outcome)


def train_stages(
    stages: Sequence[Stage], run_dir: Path, *, resumes: bool, make_host: Callable[[], Host]
) -> StagesOutcome:
    """Train every stage that is not done, in order. Return the outcome of the last one that ran.

    Everything that needs no torch is checked for all stages before the first starts. `make_host`
    returns a host for one stage. Raises JobError before anything is written.
    """
    problems = _run_problems(stages, run_dir, resumes=resumes)
    for stage in stages:
        problems += _input_problems(stage)
    if problems:
        raise JobError(*problems)
    say = make_host().line
    run = RunFolder(run_dir)
    with run.locked(LOCK_WAIT_S, say), stop_signals() as signals:
        run.answered(STOP)
        board = _Board(run_dir, stages)
        outcome = Outcome("done", Code.OK, result=stage_result(stages[-1].folder))
        for stage in stages:
            if board.is_done(stage):
                say(f"{stage.field}: {stage.name} is done")
                continue
            if signals or run.asked(STOP):
                outcome = Outcome("stopped", Code.OK)
                break
            board.note(stage, "running")
            say(f"{stage.field}: {stage.name} of {len(stages)} stages, in {stage.folder}")
            outcome = _train_stage(stage, StageHost(make_host(), run))
            board.note(stage, outcome.outcome, outcome.record)
            if outcome.outcome != "done":
                break
        run.answered(STOP)
        if outcome.outcome == "done":
            _link_fused(run_dir, stages[-1], say)
        return StagesOutcome(run_dir, outcome, board.content)


def _train_stage(stage: Stage, host: StageHost) -> Outcome:
    """Train or resume one stage. A refusal is an outcome too: earlier stages have run by then."""
    begun = (stage.folder / "run.json").exists()
    params = stage.parsed.params.model_copy(update={"resume": "true" if begun else "false"})
    try:
        train_job(Parsed(params, stage.parsed.notes), host)
    except JobError as error:
        found = prefixed(error.problems, stage.number)
        print_problems(found)
        return Outcome("failed", error.code, found[0])
    assert host.outcome, "train_job reports an outcome"
    return host.outcome


class _Board:
    """Writer of stages.json."""

    def __init__(self, run_dir: Path, stages: Sequence[Stage]):
        self._run_dir = run_dir
        self._records = [self._standing(stage) for stage in stages]
        write_stages(run_dir, self.content)

    @property
    def content(self) -> StagesFile:
        return StagesFile(stages=self._records)

    def _standing(self, stage: Stage) -> StageRecord:
        result = stage_result(stage.folder)
        state: State = "waiting"
        if result:
            state = result.outcome
        elif (stage.folder / "run.json").exists():
            state = "stopped"  # killed
        return StageRecord(
            number=stage.number,
            name=stage.name,
            folder=stage.folder.name,
            state=state,
            params={name: _safe(value) for name, value in stage.parsed.params.as_json().items()},
            result=result,
        )

    def is_done(self, stage: Stage) -> bool:
        return self._records[stage.number - 1].state == "done"

    def note(self, stage: Stage, state: State, result: Result | None = None) -> None:
        at = stage.number - 1
        changed = {"state": state, "result": result}
        self._records[at] = self._records[at].model_copy(update=changed)
        write_stages(self._run_dir, self.content)


def _safe(value: Any) -> Any:
    return redact(value) if isinstance(value, str) else value


def stage_result(folder: Path) -> Result | None:
    """Return the result in a stage's run.json; None while it has none."""
    try:
        return RunFolder(folder).read_run().result
    except (OSError, ValueError, RecursionError):
        return None


def _run_problems(stages: Sequence[Stage], run_dir: Path, *, resumes: bool) -> list[Problem]:
    """List the reasons against starting, or resuming, these stages in a folder."""
    problems = [
        Problem(
            f"{stage.field}.num_machines",
            "1 in a run of stages",
            str(stage.parsed.params.num_machines),
            "On several machines start each stage by itself, with start_from.",
        )
        for stage in stages
        if stage.parsed.params.num_machines > 1
    ]
    if resumes:
        return problems + _changed_since(stages, run_dir)
    if run_dir.is_dir() and any(path.name != LOCK for path in run_dir.iterdir()):
        holds = "a run of stages" if (run_dir / STAGES_FILE).exists() else "files"
        fix = "Choose another run_dir"
        fix += ", or resume that run with --resume true." if "stages" in holds else "."
        problems.append(
            Problem("run_dir", "a new or empty folder", f"{run_dir}, which holds {holds}", fix)
        )
    return problems


def _changed_since(stages: Sequence[Stage], run_dir: Path) -> list[Problem]:
    """List what differs from the stages that have begun. Later ones may be others."""
    try:
        before = read_stages(run_dir).stages
    except (OSError, ValueError, RecursionError) as error:
        expected, got = f"a run_dir with its {STAGES_FILE}", f"{run_dir}: {error}"
        return [Problem("resume", expected, got)]
    problems: list[Problem] = []
    for number, old in enumerate(before, start=1):
        if not (run_dir / old.folder / "run.json").exists():
            continue
        new = stages[number - 1] if number <= len(stages) else None
        if new is None or new.name != old.name:
            expected = f"{old.name}, which has begun"
            problems.append(
                Problem(f"{field_of(number)}.name", expected, new.name if new else "no such stage")
            )
        elif (result := stage_result(new.folder)) and result.outcome == "done":
            problems += prefixed(_changed(old.params, with_full_paths(new.parsed.params)), number)
    return problems


def _changed(old: Mapping[str, Any], params: Params) -> list[Problem]:
    """List the parameters of a finished stage that later stages were built on."""
    before = with_full_paths(Params.model_validate({**old, "resume": "false"})).as_json()
    moved = Path(str(before["run_dir"])).parent, Path(params.run_dir).parent
    for name in ("start_from", "model_name"):  # of the stage before, wherever the run lies now
        path = Path(str(before[name]))
        if path.is_relative_to(moved[0]):
            before[name] = str(moved[1] / path.relative_to(moved[0]))
    problems, _ = parameter_problems(before, params, packs=makes_packs(params))
    lengths = [name for name in LENGTHS if before[name] != params.as_json()[name]]
    fix = "Later stages follow from it; start a new run for another."
    return problems + [
        Problem(
            name,
            f"{before[name]!r}, of a finished stage",
            repr(params.as_json()[name]),
            fix,
        )
        for name in lengths
    ]


def _input_problems(stage: Stage) -> list[Problem]:
    """List the problems of a stage's inputs that need no torch, on the model that it begins from."""
    try:
        params = with_full_paths(stage.rooted)
        check_inputs(params, RunFolder(stage.folder), ())
    except JobError as error:
        return prefixed(error.problems, stage.number)
    return []


def _link_fused(run_dir: Path, last: Stage, say: Callable[[str], None]) -> None:
    """Make RUN_DIR/fused a relative link to the last stage's fused model, if there is one."""
    link = run_dir / "fused"
    if not (last.folder / "fused").is_dir() or (link.exists() and not link.is_symlink()):
        return
    try:
        with tempfile.TemporaryDirectory(dir=run_dir, prefix=".link-") as aside:
            part = Path(aside) / "fused"
            part.symlink_to(Path(last.folder.name) / "fused")
            os.replace(part, link)
    except OSError as error:  # a disk without links: chat and start_from read stages.json
        say(f"fused: no link in {run_dir} ({error.strerror}); the model is {last.folder / 'fused'}")


def check_stages(
    stages: Sequence[Stage], run_dir: Path, *, resumes: bool, download: bool
) -> tuple[list[Problem], list[Examined]]:
    """Check every stage without training, each on the model from which its chain begins.

    A later stage's model has the same shape, whatever it has learned.
    """
    problems = _run_problems(stages, run_dir, resumes=resumes)
    found: list[Examined] = []
    for stage in stages:
        parsed = Parsed(stage.rooted.model_copy(update={"resume": "false"}), stage.parsed.notes)
        begun = (stage.folder / "run.json").exists()
        one = examine(parsed, download=download, begun=begun)
        problems += prefixed(one.problems, stage.number)
        found.append(replace(one, problems=prefixed(one.problems, stage.number)))
    return problems, found
