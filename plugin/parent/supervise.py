"""From a plan to an outcome: `run_workers` starts the ranks, each in a session of its own, relays
what they write, and does not return before every one of them is gone.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..base import process
from ..base.errors import Code, Problem, shown
from ..base.files import open_plain
from ..base.process import LISTEN_FD, MEETING, PARENT_PID
from ..base.redact import redact, scrub
from ..run.events import Event, FailedEvent, FinishedEvent, ProgressEvent, read_event
from ..run.folder import STOP, RunFolder, Tail
from ..run.outcome import Outcome, Result
from .last_words import LastWords
from .launch import LaunchPlan
from .watchdog import Watch, write_stacks

POLL_S = 0.1
GRACE_S = 5.0  # how long the other ranks may live once one has failed
EXIT_GRACE_S = 60.0  # how long they may live once one has ended well
START_GRACE_S = (
    30.0  # after a stop, how long they may live that have made no step: there is nothing to save
)

# Signals that are a cause; SIGABRT may be a library's answer to another rank's end.
FATAL = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}


@dataclass(frozen=True)
class Relay:
    """How `run_workers` talks to whoever asked for the run."""

    line: Callable[[str], None]  # one line of the workers' log
    event: Callable[[Event], None]  # one event of events.jsonl
    stop_signals: Callable[
        [], Sequence[int]
    ]  # signals so far: the first asks, a second ends the workers now
    stop_wanted: Callable[[], bool]  # the host's own stop button
    stop_grace_s: float = math.inf  # after a signal, how long the workers may take to save


@dataclass(frozen=True)
class Inherited:
    """Open descriptors the workers get: they outlive this process in them."""

    lock: int  # the run folder stays locked until the last worker has gone
    listener: socket.socket | None = None  # several machines: rank 0 serves here
    private: Path | None = None  # a folder for the time of the run that only this user may open


class Reading:
    """What the workers have written so far, relayed line by line; remembers the event that decides
    the outcome.
    """

    def __init__(self, folder: RunFolder, relay: Relay):
        self._relay = relay
        self.last_words = LastWords()
        self._lines, self._events = (
            Tail(folder / "log.txt", from_end=True),
            Tail(folder / "events.jsonl", from_end=True),
        )
        self.final: FailedEvent | FinishedEvent | None = None
        self._first_step: int | None = None
        self.stepped = False  # this run, in these processes, has made a step

    def pump(self) -> None:
        for line in self._lines.new_lines():
            text = shown(redact(line.rstrip("\r")))
            self.last_words.read(text)
            self._relay.line(text)
        for text in self._events.new_lines():
            try:
                event = read_event(text)
            except ValueError:  # a killed rank's half line, with another's behind it
                self._relay.line(shown(redact(text)))
                continue
            # The first failure is the cause, later ones follow from it; so do those after a stop
            # that had nothing to save.
            if (
                isinstance(event, FinishedEvent | FailedEvent)
                and not isinstance(self.final, FailedEvent)
                and not self.given_up
            ):
                self.final = event
            if isinstance(event, ProgressEvent):
                first = self._first_step = (
                    event.step if self._first_step is None else self._first_step
                )
                self.stepped |= event.step > first
            self._relay.event(event)

    def give_up(self) -> None:
        """Take the run for stopped before its first step, whatever else comes."""
        self.final = FinishedEvent(result=Result(outcome="stopped", steps=0))

    @property
    def given_up(self) -> bool:
        """Rank 0 stopped before the first step: nothing to save, and the other ranks may wait for
        it in vain.
        """
        return isinstance(self.final, FinishedEvent) and _stopped_at_once(self.final.result)


def _stopped_at_once(result: Result) -> bool:
    return result.outcome == "stopped" and result.steps == 0


def run_workers(
    plan: LaunchPlan, folder: RunFolder, relay: Relay, inherited: Inherited, hang_timeout_s: float
) -> Outcome:
    """Start every rank, relay what they write, and return what became of them.

    No process is left behind, whatever happens.
    """
    workers: list[subprocess.Popen[bytes]] = []
    codes: list[int | None] = []
    hang: Problem | None = None
    reading = Reading(folder, relay)
    numbers = [int(rank.get("RANK", "0")) for rank in plan.ranks]
    watch = Watch(folder.path, numbers, hang_timeout_s)
    try:
        with open(folder / "log.txt", "ab", opener=open_plain) as log:
            for rank in plan.ranks:
                workers.append(_start(plan.argv, rank, log, inherited))
        if inherited.listener:
            # rank 0's alone from here: the port is free when it has gone
            inherited.listener.close()
        codes, hang = _wait(workers, folder, relay, reading, watch)
        if hang:
            running = {
                number: worker.pid
                for number, worker in zip(numbers, workers, strict=True)
                if worker.poll() is None
            }
            write_stacks(running, folder / "log.txt")
    finally:
        for worker in workers:
            _end(worker)
        reading.pump()
        watch.close()
        scrub(folder / "log.txt")
    if hang:
        return Outcome("failed", Code.HANG, hang)
    return _outcome(codes, numbers, reading, relay.stop_signals(), folder)


def _start(
    argv: Sequence[str], rank: Mapping[str, str], log: IO[bytes], inherited: Inherited
) -> subprocess.Popen[bytes]:
    kept, extra = [inherited.lock], {PARENT_PID: str(os.getpid())}
    if inherited.listener and rank["RANK"] == "0":
        kept.append(inherited.listener.fileno())
        extra[LISTEN_FD] = str(inherited.listener.fileno())
    if inherited.private:
        extra |= process.compile_cache(os.environ, inherited.private)
        if "RANK" in rank and "MASTER_ADDR" not in rank:  # one of several, on one machine
            extra[MEETING] = str(inherited.private / "store")
    return subprocess.Popen(
        argv,
        env={**process.inherited(os.environ), **rank, **extra},
        stdin=subprocess.DEVNULL,
        # a file, not a pipe: when this process is killed, the workers can still write and save
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=kept,
    )


def _wait(
    workers: Sequence[subprocess.Popen[bytes]],
    folder: RunFolder,
    relay: Relay,
    reading: Reading,
    watch: Watch,
) -> tuple[list[int | None], Problem | None]:
    """Exit codes once every rank has ended, or as they are when the others must be ended (None =
    still running); a hang.
    """
    deadline = asked = signalled = math.inf
    while None in (codes := [worker.poll() for worker in workers]):
        reading.pump()
        signals, now = relay.stop_signals(), time.monotonic()
        if len(signals) > 1 or now > deadline:
            break
        if asked == math.inf and (signals or relay.stop_wanted() or folder.asked(STOP)):
            folder.ask(STOP)
            asked = now
        if signals and signalled == math.inf:
            signalled = now
            deadline = min(deadline, now + relay.stop_grace_s)
        if now > asked + START_GRACE_S and not reading.stepped:
            reading.give_up()
            break
        ended = [code for code in codes if code is not None]
        # A rank that said why it failed may yet hang while it ends.
        broken = any(ended) or isinstance(reading.final, FailedEvent) or reading.given_up
        if broken or ended:
            deadline = min(deadline, time.monotonic() + (GRACE_S if broken else EXIT_GRACE_S))
        if hang := watch.hang():
            return codes, hang
        time.sleep(POLL_S)
    return codes, None


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker's whole session: whatever it started dies with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _outcome(
    codes: Sequence[int | None],
    ranks: Sequence[int],
    reading: Reading,
    signals: Sequence[int],
    folder: RunFolder,
) -> Outcome:
    """Done only when every rank exited 0 and the final event was written; a signal that was obeyed
    gives 128 + its number.
    """
    final = reading.final
    killed = any(code in FATAL for code in codes)
    if isinstance(final, FinishedEvent) and (all(code == 0 for code in codes) or reading.given_up):
        if final.result.outcome == "stopped":
            return Outcome("stopped", 128 + signals[0] if signals else Code.OK, result=final.result)
        return Outcome("done", Code.OK, result=final.result)
    if (
        isinstance(final, FailedEvent) and not killed
    ):  # a killed rank is the cause of what the others say
        return Outcome("failed", final.error.code, final.error)
    if len(signals) > 1 or (signals and None in codes and not any(codes)):
        return Outcome(
            "stopped", 128 + signals[0]
        )  # ended at once: what it did and saved is in the run folder
    problem = _died(codes, ranks, reading.last_words, folder)
    return Outcome("failed", problem.code, problem)


def _died(
    codes: Sequence[int | None], ranks: Sequence[int], last_words: LastWords, folder: RunFolder
) -> Problem:
    """Tell a death from the exit codes and from what was printed, where no event does."""
    fix = f"See {folder / 'log.txt'}.{folder.what_is_saved()}"
    ended = [(rank, code) for rank, code in zip(ranks, codes, strict=True) if code]
    if not ended:
        if None in codes:
            got = f"rank {ranks[codes.index(None)]} still running {EXIT_GRACE_S:g} s after another had ended"
            return Problem("worker", "every rank to end", got, fix, Code.WORKER_DIED)
        return Problem(
            "worker",
            "a final event",
            "an exit without one",
            f"Please report this. {fix}",
            Code.WORKER_DIED,
        )
    rank, code = min(
        ended, key=lambda one: one[1] not in FATAL
    )  # the cause before what followed from it
    if code == Code.DISK:  # a full disk takes the worker's last words too
        return Problem(
            "disk",
            "space for the run's files",
            f"none left for rank {rank}",
            f"Free some. {fix}",
            Code.DISK,
        )
    if code < 0:
        likely = " (likely out of memory)" if code == -signal.SIGKILL else ""
        got = f"worker died{likely}: rank {rank} ended by {signal.Signals(-code).name}"
    elif cause := last_words.cause:
        got = f"worker died: rank {rank} exited {code}: {cause}"
    else:
        got = f"worker died: rank {rank} exited {code} without saying why"
    return Problem("worker", "every rank to finish", got, fix, Code.WORKER_DIED)
