"""Launch plan of a job: its processes, their environment, and where they meet.

parent/supervise.py starts what is planned here.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import JobError, Problem
from ..base.process import child_path, cpu_threads
from ..config.params import Params
from ..run.lines import counted
from .gpus import list_gpus, resolve_gpus, visible_gpus
from .network import interface_to


@dataclass(frozen=True)
class LaunchPlan:
    """One command, started once a rank, each time with that rank's additions to the environment."""

    argv: tuple[str, ...]
    ranks: tuple[Mapping[str, str], ...]
    gpus: tuple[str, ...]  # names as CUDA_VISIBLE_DEVICES takes them; empty on a CPU
    accelerate: str  # the equivalent `accelerate launch` command, for clusters

    def as_json(self) -> dict[str, object]:
        return {
            "argv": list(self.argv),
            "processes": len(self.ranks),
            "gpus": list(self.gpus),
            "ranks": [dict(rank) for rank in self.ranks],
            "accelerate": self.accelerate,
        }


def devices_line(gpus: Sequence[str], processes: int) -> str:
    """Describe where a job runs: `GPU 0, 1; 2 processes`."""
    where = f"GPU {', '.join(gpus)}" if gpus else "CPU"
    return f"{where}; {counted(processes, 'process', 'processes')}"


def make_plan(
    params: Params, run_dir: Path, opened: ExitStack
) -> tuple[LaunchPlan, socket.socket | None]:
    """Return the plan of this machine, and the bound port to which other machines connect.

    `opened` closes that port. Raises JobError.
    """
    visible = [] if params.train_device == "cpu" else visible_gpus(os.environ, list_gpus)
    gpus = resolve_gpus(params, visible)
    listener = listen(params)
    if listener:
        opened.enter_context(listener)
    port = params.main_process_port if isinstance(params.main_process_port, int) else 0
    environ = dict(os.environ)
    if params.num_machines > 1 and "GLOO_SOCKET_IFNAME" not in environ:
        environ["GLOO_SOCKET_IFNAME"] = interface_to(params.main_process_ip)
    return plan_launch(params, run_dir, gpus, port, environ), listener


def count_processes(params: Params, gpus: Sequence[str]) -> int:
    """Return the number of processes on this machine. Raises JobError naming num_processes."""
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
    """Return this machine's own run folder.

    That of machine 0 is the run's; the others' lie in it, on a shared disk or not.
    """
    return run_dir / f"machine-{params.machine_rank}" if params.machine_rank else run_dir


def plan_launch(
    params: Params, run_dir: Path, gpus: Sequence[str], port: int, environ: Mapping[str, str]
) -> LaunchPlan:
    """Plan the processes of this job on this machine, without side effects.

    `port`: where rank 0 of several machines listens. Every machine starts the same number of
    processes. Raises JobError naming num_processes.
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
            ":4096:8"  # deterministic matmuls need it before CUDA starts
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
            # Rank 0 serves the store on the port that the parent had bound, every rank is a client;
            # see worker/rendezvous.py.
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
    # -P: modules in the user's current folder must not shadow our packages.
    argv = (sys.executable, "-P", "-m", "plugin.worker", str(run_dir))
    command = _accelerate_command(params, world, devices, port, run_dir)
    return LaunchPlan(argv, tuple(common | number for number in numbers), devices, command)


def _without_tcache(tunables: str) -> str:
    """Return glibc's tunables with the cache of small blocks off, unless a user has set it.

    malloc splits a small remainder off every tensor's block. A remainder in that cache never merges
    with the hole that the tensor leaves. The next tensor of that size does not fit, and memory
    grows: by up to 70 % instead of 20 %, and more slowly, since new pages are cleared
    (benches/LOG.md). Other systems ignore this.
    """
    return (
        tunables
        if "tcache_count" in tunables
        else ":".join(filter(None, (tunables, "glibc.malloc.tcache_count=0")))
    )


def _accelerate_command(
    params: Params, world: int, gpus: Sequence[str], port: int, run_dir: Path
) -> str:
    # With --cpu accelerate starts one process, whatever --num_processes says. With --multi_gpu it
    # starts all of them, on any device.
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
    """Return the bound port on which rank 0 will serve the other machines; None if it does not.

    The port stays bound and the worker inherits it, so no other job can take it in between. Raises
    JobError naming main_process_port.
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
