"""Supervision of the workers.

`run_workers` starts each rank in a session of its own, relays what the ranks write, and returns
when all of them have ended.
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
from .watchdog import Watchdog, write_stacks

POLL_S = 0.1
GRACE_S = 5.0  # until the other ranks are ended once one has failed
EXIT_GRACE_S = 60.0  # until they are ended once one has ended well
START_GRACE_S = 30.0  # after a stop, until ranks without a step are ended: nothing is to be saved

# Signals that are a cause; SIGABRT may be a library's reaction to the end of another rank.
FATAL = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}


@dataclass(frozen=True)
class Relay:
    """Callbacks of `run_workers` into the host."""

    line: Callable[[str], None]  # one line of the workers' log
    event: Callable[[Event], None]  # one event of events.jsonl
    # signals so far: the first asks the workers to stop, a second ends them immediately
    stop_signals: Callable[[], Sequence[int]]
    stop_wanted: Callable[[], bool]  # the host's own stop button
    stop_grace_s: float = math.inf  # after a signal, until the workers are ended


@dataclass(frozen=True)
class Inherited:
    """Open descriptors that the workers inherit, and in which these outlive this process."""

    lock: int  # the run folder stays locked until the last worker has gone
    listener: socket.socket | None = None  # several machines: rank 0 serves here
    private: Path | None = None  # a folder for this run that only this user may open


class Reading:
    """The workers' log and events, relayed line by line; keeps the event that decides the outcome."""

    def __init__(self, folder: RunFolder, relay: Relay):
        self._relay = relay
        self.last_words = LastWords()
        self._lines, self._events = (
            Tail(folder / "log.txt", from_end=True),
            Tail(folder / "events.jsonl", from_end=True),
        )
        self.final: FailedEvent | FinishedEvent | None = None
        self._first_step: int | None = None
        self.stepped = False  # these processes have made a step

    def pump(self) -> None:
        for line in self._lines.new_lines():
            text = shown(redact(line.rstrip("\r")))
            self.last_words.read(text)
            self._relay.line(text)
        for text in self._events.new_lines():
            try:
                event = read_event(text)
            except ValueError:  # a killed rank's half line, followed by another rank's
                self._relay.line(shown(redact(text)))
                continue
            # The first failure is the cause; later ones follow from it, or from a stop that had
            # nothing to save.
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
        """Treat the run as stopped before its first step, whatever event follows."""
        self.final = FinishedEvent(result=Result(outcome="stopped", steps=0))

    @property
    def given_up(self) -> bool:
        """Tell whether rank 0 stopped before the first step: the others may wait for it in vain."""
        return isinstance(self.final, FinishedEvent) and _stopped_before_a_step(self.final.result)


def _stopped_before_a_step(result: Result) -> bool:
    return result.outcome == "stopped" and result.steps == 0


def run_workers(
    plan: LaunchPlan, folder: RunFolder, relay: Relay, inherited: Inherited, hang_timeout_s: float
) -> Outcome:
    """Start every rank, relay what the ranks write, and return the outcome.

    No process is left behind, whatever happens.
    """
    workers: list[subprocess.Popen[bytes]] = []
    codes: list[int | None] = []
    hang: Problem | None = None
    reading = Reading(folder, relay)
    numbers = [int(rank.get("RANK", "0")) for rank in plan.ranks]
    watchdog = Watchdog(folder.path, numbers, hang_timeout_s)
    try:
        with open(folder / "log.txt", "ab", opener=open_plain) as log:
            for rank in plan.ranks:
                workers.append(_start(plan.argv, rank, log, inherited))
        if inherited.listener:
            # only rank 0 holds it from here: the port is free when it has ended
            inherited.listener.close()
        codes, hang = _wait(workers, folder, relay, reading, watchdog)
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
        watchdog.close()
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
        if "RANK" in rank and "MASTER_ADDR" not in rank:  # one of several ranks on one machine
            extra[MEETING] = str(inherited.private / "store")
    return subprocess.Popen(
        argv,
        env={**process.inherited(os.environ), **rank, **extra},
        stdin=subprocess.DEVNULL,
        # a file and not a pipe: workers can still write and save when this process is killed
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
    watchdog: Watchdog,
) -> tuple[list[int | None], Problem | None]:
    """Wait for the ranks. Return their exit codes, and a hang if there is one.

    A code is None for a rank that still runs and must be ended.
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
        # A rank that has reported its failure may still hang while it ends.
        broken = any(ended) or isinstance(reading.final, FailedEvent) or reading.given_up
        if broken or ended:
            deadline = min(deadline, time.monotonic() + (GRACE_S if broken else EXIT_GRACE_S))
        if hang := watchdog.hang():
            return codes, hang
        time.sleep(POLL_S)
    return codes, None


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker's session: every process that it started."""
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
    """Return the outcome: done only if every rank exited 0 and the final event was written.

    A stop by a signal has the code 128 + its number.
    """
    final = reading.final
    killed = any(code in FATAL for code in codes)
    if isinstance(final, FinishedEvent) and (all(code == 0 for code in codes) or reading.given_up):
        if final.result.outcome == "stopped":
            return Outcome("stopped", 128 + signals[0] if signals else Code.OK, result=final.result)
        return Outcome("done", Code.OK, result=final.result)
    # A killed rank is the cause of the failures that the others report.
    if isinstance(final, FailedEvent) and not killed:
        return Outcome("failed", final.error.code, final.error)
    if len(signals) > 1 or (signals and None in codes and not any(codes)):
        return Outcome("stopped", 128 + signals[0])  # ended immediately; the folder has the rest
    problem = _died(codes, ranks, reading.last_words, folder)
    return Outcome("failed", problem.code, problem)


def _died(
    codes: Sequence[int | None], ranks: Sequence[int], last_words: LastWords, folder: RunFolder
) -> Problem:
    """Describe a death that no event reports, from the exit codes and the printed lines."""
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
    rank, code = min(ended, key=lambda pair: pair[1] not in FATAL)  # the cause comes first
    if code == Code.DISK:  # a full disk swallows the worker's last event too
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
