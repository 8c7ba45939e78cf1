"""From parameters to a plan: which GPUs, which processes with which environment, and where they
meet.

`resolve_gpus` and `plan_launch` are pure. parent/supervise.py starts what is planned here.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import JobError, Problem
from ..base.process import child_path, cpu_threads
from ..config.params import Params


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

    `list_gpus` returns what `nvidia-smi -L` prints. A MIG slice is a device of its own.
    CUDA_VISIBLE_DEVICES may hold indices or names (GPU-..., MIG-...); as in CUDA, the first unknown
    one ends the list.
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
        return subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def resolve_gpus(params: Params, visible: Sequence[str]) -> tuple[str, ...]:
    """The GPUs of this job, by name; empty means CPU. Positions in `gpu_ids` count the visible
    GPUs, as torch does.

    Raises JobError naming gpu_ids or train_device.
    """
    here = f"this machine has {_span(len(visible))}"
    if params.train_device == "cpu":
        if params.gpu_ids != "auto":
            raise JobError(
                Problem(
                    "gpu_ids",
                    '"auto" with train_device cpu',
                    params.gpu_ids,
                    "A CPU run uses no GPU.",
                )
            )
        return ()
    if params.gpu_ids == "auto":
        if params.train_device == "cuda" and not visible:
            raise JobError(
                Problem(
                    "train_device",
                    "a CUDA GPU on this machine",
                    "cuda, but none is visible",
                    "Use auto or cpu.",
                )
            )
        slices = [name for name in visible if name.startswith("MIG-")]
        return tuple(slices[:1] or visible)  # NCCL cannot join MIG slices
    positions = [int(part) for part in params.gpu_ids.split(",")]
    absent = [position for position in positions if position >= len(visible)]
    problems: list[Problem] = []
    if absent:
        problems.append(
            Problem(
                "gpu_ids", "GPUs that exist", f"{_words(absent)}; {here}", 'Use "auto" for all.'
            )
        )
    if twice := sorted({position for position in positions if positions.count(position) > 1}):
        problems.append(
            Problem(
                "gpu_ids", "each GPU once", f"{_words(twice)} more than once", "Name each GPU once."
            )
        )
    if problems:
        raise JobError(*problems)
    names = tuple(visible[position] for position in positions)
    if len(names) > 1 and any(name.startswith("MIG-") for name in names):
        raise JobError(
            Problem(
                "gpu_ids",
                "one MIG slice",
                params.gpu_ids,
                "MIG slices cannot train together; name one.",
            )
        )
    return names


def _words(positions: Sequence[int]) -> str:
    return ", ".join(map(str, positions))


def _span(count: int) -> str:
    return {0: "no GPU", 1: "GPU 0"}.get(count, f"GPUs 0-{count - 1}")


def count_processes(params: Params, gpus: Sequence[str]) -> int:
    """Processes on this machine. Raises JobError naming num_processes."""
    wanted = params.num_processes
    if isinstance(wanted, int) and gpus and wanted > len(gpus):
        raise JobError(
            Problem(
                "num_processes",
                f"at most one process a GPU ({len(gpus)})",
                str(wanted),
                'Use "auto".',
            )
        )
    most = max(8, 4 * (os.cpu_count() or 1))
    if isinstance(wanted, int) and not gpus and wanted > most:
        got = f"{wanted}, each of which holds the model"
        raise JobError(
            Problem("num_processes", f"at most {most} on this machine's CPU", got, 'Use "auto".')
        )
    return wanted if isinstance(wanted, int) else max(1, len(gpus))


def machine_dir(params: Params, run_dir: Path) -> Path:
    """This machine's own run folder: the first machine's is the run's, the others' lie in it, on a
    shared disk or not.
    """
    return run_dir / f"machine-{params.machine_rank}" if params.machine_rank else run_dir


def plan_launch(
    params: Params, run_dir: Path, gpus: Sequence[str], port: int, environ: Mapping[str, str]
) -> LaunchPlan:
    """The processes of this job on this machine. Pure: the same arguments give the same plan.

    `port` is where rank 0 of several machines listens. Every machine starts as many processes.
    Raises JobError naming num_processes.
    """
    processes = count_processes(params, gpus)
    devices = tuple(gpus[:processes])
    cores = os.cpu_count() or 1
    tokenizer_threads = params.num_proc if isinstance(params.num_proc, int) else min(8, cores)
    common = {
        **child_path(environ),
        "PYTHONUNBUFFERED": "1",
        "RAYON_NUM_THREADS": str(tokenizer_threads),
        "TOKENIZERS_PARALLELISM": "true",
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
    }
    if devices:
        common["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        common["CUBLAS_WORKSPACE_CONFIG"] = (
            ":4096:8"  # what deterministic products need, set before CUDA starts
        )
    else:
        common |= {"ACCELERATE_USE_CPU": "true"} | cpu_threads(environ, processes)
        common["GLIBC_TUNABLES"] = _without_tcache(environ.get("GLIBC_TUNABLES", ""))
    world, alone = params.num_machines * processes, params.num_machines == 1
    if world > 1:
        common |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(processes)}
    if not alone:
        common |= {
            "MASTER_ADDR": params.main_process_ip,
            "MASTER_PORT": str(port),
            # Every rank is a client of the store that rank 0 serves on the port the parent had
            # bound; see worker/rendezvous.py.
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    own = "lo" if alone and sys.platform == "linux" else ""  # ranks of one machine need no network
    if world > 1 and (interface := environ.get("GLOO_SOCKET_IFNAME", own)):
        common["GLOO_SOCKET_IFNAME"] = interface
    first = params.machine_rank * processes
    numbers = [
        {"RANK": str(first + local), "LOCAL_RANK": str(local)} if world > 1 else {}
        for local in range(processes)
    ]
    # -P: the folder a user happens to stand in must not shadow our packages.
    argv = (sys.executable, "-P", "-m", "plugin.worker", str(run_dir))
    command = _accelerate_command(params, world, devices, port, run_dir)
    return LaunchPlan(argv, tuple(common | number for number in numbers), devices, command)


def _without_tcache(tunables: str) -> str:
    """glibc's settings with its cache of small blocks off, unless a person has set it. Beside every
    tensor malloc cuts off a sliver; slivers in that cache never join the hole that the tensor
    leaves, the next one of its size does not fit, and memory grows: by up to 70 % instead of 20,
    and more slowly for the pages that have to be cleared (benches/LOG.md). Other systems ignore
    this.
    """
    return (
        tunables
        if "tcache_count" in tunables
        else ":".join(filter(None, (tunables, "glibc.malloc.tcache_count=0")))
    )


def _accelerate_command(
    params: Params, world: int, gpus: Sequence[str], port: int, run_dir: Path
) -> str:
    # Beside --cpu accelerate starts one process, however many are named. With --multi_gpu it starts
    # them all, on whatever device.
    alone = [] if world > 1 else ["--cpu"]
    device = ["--gpu_ids", ",".join(gpus)] if gpus else alone
    several = ["--multi_gpu"] if world > 1 else []
    machines = [
        "--num_machines",
        str(params.num_machines),
        "--machine_rank",
        str(params.machine_rank),
    ]
    machines += ["--main_process_ip", params.main_process_ip, "--main_process_port", str(port)]
    size = ["--num_processes", str(world), *(machines if params.num_machines > 1 else [])]
    return shlex.join(
        ["accelerate", "launch", *several, *size, *device, "-m", "plugin.worker", str(run_dir)]
    )


def listen(params: Params) -> socket.socket | None:
    """Return the bound port on which rank 0 will serve other machines; None where there are none,
    or it is another's.

    It stays bound from here on and the worker inherits it, so no other job can take it in between.
    Raises JobError naming main_process_port.
    """
    if params.num_machines == 1 or params.machine_rank > 0:
        return None
    port = params.main_process_port if isinstance(params.main_process_port, int) else 0
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
    except OSError as error:
        listener.close()
        raise JobError(
            Problem("main_process_port", "a free port of this machine", f"{port}: {error.strerror}")
        ) from error
    listener.listen(128)
    return listener
