"""From parameters to running workers: which GPUs, which processes with which environment, and what became of them.

`resolve_gpus` and `plan_launch` are pure. `run_workers` starts the ranks, each in a session of its own, and does not return
before every one of them is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .job import Code, JobError, Outcome, Problem
from .params import Params
from .run_folder import STOP, RunFolder, Tail

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.1
GRACE_S = 5.0  # how long the other ranks may live once one has failed
EXIT_GRACE_S = 60.0  # how long they may live once one has ended well


@dataclass(frozen=True)
class LaunchPlan:
    """What is started: one command, once a rank, each with these additions to the environment."""

    argv: tuple[str, ...]
    ranks: tuple[Mapping[str, str], ...]
    gpus: tuple[str, ...]  # names as CUDA_VISIBLE_DEVICES takes them; empty on a CPU
    accelerate: str  # the equal `accelerate launch` command, for clusters

    def as_json(self) -> dict[str, object]:
        return {
            "argv": list(self.argv),
            "processes": len(self.ranks),
            "gpus": list(self.gpus),
            "ranks": [dict(rank) for rank in self.ranks],
            "accelerate": self.accelerate,
        }


def visible_gpus(environ: Mapping[str, str], list_gpus: Callable[[], str]) -> list[str]:
    """Names of the GPUs CUDA would show, in its order, without loading torch.

    `list_gpus` returns what `nvidia-smi -L` prints. A MIG slice is a device of its own. CUDA_VISIBLE_DEVICES may hold indices or
    names (GPU-..., MIG-...); as in CUDA, the first unknown one ends the list.
    """
    devices: list[str] = []
    uuids: list[str] = []
    for line in list_gpus().splitlines():
        uuids += re.findall(r"UUID: ([^)]+)\)", line)
        if match := re.match(r"GPU (\d+):", line):
            devices.append(match.group(1))
        elif match := re.search(r"UUID: (MIG-[^)]+)\)", line):
            if devices and devices[-1].isdigit():
                devices.pop()  # a GPU cut into slices is reached through them alone
            devices.append(match.group(1))
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return devices
    names: list[str] = []
    for name in (part.strip() for part in chosen.split(",")):
        named = name.startswith(("GPU-", "MIG-")) and any(uuid.startswith(name) for uuid in uuids)
        known = name in devices if name.isdigit() else named
        if not known:
            break
        names.append(name)
    return names


def nvidia_smi() -> str:
    """`nvidia-smi -L`, or nothing on a machine without it."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def resolve_gpus(params: Params, visible: Sequence[str]) -> tuple[str, ...]:
    """The GPUs of this job, by name; empty means CPU. Positions in `gpu_ids` count the visible GPUs, as torch does.

    Raises JobError naming gpu_ids or train_device.
    """
    here = f"this machine has {_span(len(visible))}"
    if params.train_device == "cpu":
        if params.gpu_ids != "auto":
            raise JobError(Problem("gpu_ids", '"auto" with train_device cpu', params.gpu_ids, "A CPU run uses no GPU."))
        return ()
    if params.gpu_ids == "auto":
        if params.train_device == "cuda" and not visible:
            raise JobError(Problem("train_device", "a CUDA GPU on this machine", "cuda, but none is visible", "Use auto or cpu."))
        slices = [name for name in visible if name.startswith("MIG-")]
        return tuple(slices[:1] or visible)  # NCCL cannot join MIG slices
    positions = [int(part) for part in params.gpu_ids.split(",")]
    absent = [position for position in positions if position >= len(visible)]
    problems: list[Problem] = []
    if absent:
        problems.append(Problem("gpu_ids", "GPUs that exist", f"{_words(absent)}; {here}", 'Use "auto" for all.'))
    if twice := sorted({position for position in positions if positions.count(position) > 1}):
        problems.append(Problem("gpu_ids", "each GPU once", f"{_words(twice)} more than once", "Name each GPU once."))
    if problems:
        raise JobError(*problems)
    names = tuple(visible[position] for position in positions)
    if len(names) > 1 and any(name.startswith("MIG-") for name in names):
        raise JobError(Problem("gpu_ids", "one MIG slice", params.gpu_ids, "MIG slices cannot train together; name one."))
    return names


def _words(positions: Sequence[int]) -> str:
    return ", ".join(map(str, positions))


def _span(count: int) -> str:
    return {0: "no GPU", 1: "GPU 0"}.get(count, f"GPUs 0-{count - 1}")


def plan_launch(params: Params, run_dir: Path, gpus: Sequence[str], port: int, environ: Mapping[str, str]) -> LaunchPlan:
    """The processes of this job. Pure: the same arguments give the same plan. Raises JobError naming num_processes."""
    wanted = params.num_processes
    if isinstance(wanted, int) and gpus and wanted > len(gpus):
        raise JobError(Problem("num_processes", f"at most one process a GPU ({len(gpus)})", str(wanted), 'Use "auto".'))
    processes = wanted if isinstance(wanted, int) else max(1, len(gpus))
    devices = tuple(gpus[:processes])
    cores = os.cpu_count() or 1
    tokenizer_threads = params.num_proc if isinstance(params.num_proc, int) else min(8, cores)
    common = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH", "")])),
        "PYTHONUNBUFFERED": "1",
        "RAYON_NUM_THREADS": str(tokenizer_threads),
        "TOKENIZERS_PARALLELISM": "true",
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
    }
    if devices:
        common["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    else:
        # Busy-waiting OpenMP threads are slower than one thread as soon as anything else runs.
        threads = {"OMP_NUM_THREADS": str(max(1, cores // processes)), "OMP_WAIT_POLICY": "PASSIVE"}
        common |= {"ACCELERATE_USE_CPU": "true"} | {name: environ.get(name, value) for name, value in threads.items()}
    if processes > 1:
        address = params.main_process_ip
        main_port = params.main_process_port if isinstance(params.main_process_port, int) else port
        common |= {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(main_port),
        }
    ranks = tuple(common | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}) for rank in range(processes))
    # -P: the folder a user happens to stand in must not shadow our packages.
    argv = (sys.executable, "-P", "-m", "plugin.worker", str(run_dir))
    return LaunchPlan(argv, ranks, devices, _accelerate_command(processes, devices, run_dir))


def _accelerate_command(processes: int, gpus: Sequence[str], run_dir: Path) -> str:
    device = ["--gpu_ids", ",".join(gpus)] if gpus else ["--cpu"]
    several = ["--multi_gpu"] if gpus and processes > 1 else []  # accelerate refuses it beside --cpu
    size = ["--num_processes", str(processes)]
    return shlex.join(["accelerate", "launch", *several, *size, *device, "-m", "plugin.worker", str(run_dir)])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Relay:
    """How `run_workers` talks to whoever asked for the run."""

    line: Callable[[str], None]  # one line of the workers' log
    event: Callable[[dict[str, Any]], None]  # one event of events.jsonl
    stop_signals: Callable[[], Sequence[int]]  # signals so far: the first asks, a second ends the workers now
    stop_wanted: Callable[[], bool]  # the host's own stop button


def run_workers(plan: LaunchPlan, folder: RunFolder, relay: Relay) -> Outcome:
    """Start every rank, relay what they write, and return what became of them. No process is left behind, whatever happens."""
    workers: list[subprocess.Popen[bytes]] = []
    codes: list[int | None] = []
    final: dict[str, Any] = {}
    lines, events = Tail(folder / "log.txt"), Tail(folder / "events.jsonl")

    def pump() -> None:
        for line in lines.new_lines():
            relay.line(line)
        for text in events.new_lines():
            try:
                event = json.loads(text)
            except ValueError:  # a killed rank's half line, with another's behind it
                relay.line(text)
                continue
            if event["type"] in ("finished", "failed") and final.get("type") != "failed":
                final.update(event)  # the first failure is the cause, later ones follow from it
            relay.event(event)

    try:
        with (folder / "log.txt").open("ab") as log:
            for rank in plan.ranks:
                workers.append(_start(plan.argv, rank, log))
        codes = _wait(workers, folder, relay, pump)
    finally:
        for worker in workers:
            _end(worker)
        pump()
    return _outcome(codes, final, relay.stop_signals())


def _start(argv: Sequence[str], rank: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env={**os.environ, **rank},
        stdin=subprocess.DEVNULL,
        stdout=log,  # a file, not a pipe: when this process is killed, the workers can still write and save
        stderr=log,
        start_new_session=True,
    )


def _wait(
    workers: Sequence[subprocess.Popen[bytes]], folder: RunFolder, relay: Relay, pump: Callable[[], None]
) -> list[int | None]:
    """Exit codes once every rank has ended, or as they are when the others must be ended (None = still running)."""
    deadline = float("inf")
    while None in (codes := [worker.poll() for worker in workers]):
        pump()
        signals = relay.stop_signals()
        if len(signals) > 1 or time.monotonic() > deadline:
            break
        if (signals or relay.stop_wanted()) and not folder.asked(STOP):
            folder.ask(STOP)
        ended = [code for code in codes if code is not None]
        if ended and deadline == float("inf"):
            deadline = time.monotonic() + (GRACE_S if any(ended) else EXIT_GRACE_S)
        time.sleep(POLL_S)
    return codes


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker's whole session: whatever it started dies with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _outcome(codes: Sequence[int | None], final: Mapping[str, Any], signals: Sequence[int]) -> Outcome:
    """Done only when every rank exited 0 and the final event was written; a signal that was obeyed gives 128 + its number."""
    if all(code == 0 for code in codes) and final.get("type") == "finished":
        result: dict[str, Any] = final["result"]
        if result["outcome"] == "stopped":
            return Outcome("stopped", 128 + signals[0] if signals else Code.OK, result=result)
        return Outcome("done", Code.OK, result=result)
    if final.get("type") == "failed":
        error = Problem(**final["error"])
        return Outcome("failed", error.code, error, final.get("result"))
    if len(signals) > 1:
        return Outcome("stopped", 128 + signals[0])  # ended at once: what it did and saved is in the run folder
    return Outcome("failed", Code.WORKER_DIED, _died(codes))


def _died(codes: Sequence[int | None]) -> Problem:
    rank, code = next(((rank, code) for rank, code in enumerate(codes) if code), (0, 0))
    if None in codes and not any(codes):
        got = f"rank {codes.index(None)} still running {EXIT_GRACE_S:g} s after another had ended"
        return Problem("worker", "every rank to end", got, "See log.txt; the last checkpoint is whole.", Code.WORKER_DIED)
    if code == 0:
        return Problem("worker", "a final event", "an exit without one", "Please report this.", Code.WORKER_DIED)
    if code < 0:
        likely = " (likely out of memory)" if code == -signal.SIGKILL else ""
        got = f"worker died{likely}: rank {rank} ended by {signal.Signals(-code).name}"
    else:
        got = f"worker died: rank {rank} exited {code} without saying why"
    return Problem("worker", "every rank to finish", got, "See log.txt; the last checkpoint is whole.", Code.WORKER_DIED)
