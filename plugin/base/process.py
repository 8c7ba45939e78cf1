"""Environment in which one program of this product starts another.

It holds the import path and the number of threads, and nothing that a foreign launcher left.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# a worker notices this process's death, even if it came before the worker could look
PARENT_PID = "TRAINER_PARENT_PID"
LISTEN_FD = "TRAINER_LISTEN_FD"  # several machines: rank 0's bound port; see worker/rendezvous.py
# makes the hub's libraries read only their own cache
NO_DOWNLOADS = {"HF_HUB_OFFLINE": "1"}
MEETING = "TRAINER_MEETING"  # one machine: the file in which its ranks meet

_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # of Linux; found before any fork
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG

# torch, accelerate and MPI read these to find the other ranks of a job. A pod of a PyTorchJob and a
# shell inside of srun have them: one rank would wait for others endlessly, and connect to whatever
# they name.
_LAUNCHER = re.compile(
    r"(GROUP_|ROLE_|LOCAL_)?(RANK|WORLD_SIZE)|ROLE_NAME|FORK_LAUNCHED|MPI_LOCALRANKID|MPI_LOCALNRANKS"
    r"|(MASTER|TORCHELASTIC|OMPI_COMM_WORLD|MV2_COMM_WORLD|PMI|ACCELERATE|FSDP)_.*"
)


def of_launcher(environ: Mapping[str, str]) -> list[str]:
    """List the variables in `environ` by which a launcher assigns ranks."""
    return [name for name in environ if _LAUNCHER.fullmatch(name)]


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without a launcher's variables and without ours for another child."""
    dropped = {*of_launcher(environ), PARENT_PID, LISTEN_FD, MEETING}
    return {name: value for name, value in environ.items() if name not in dropped}


def child_path(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the PYTHONPATH that `python -P -m plugin.X` needs: our folder, then the user's.

    An empty entry, as in `/x:`, would be the current folder, ahead of the standard library.
    """
    theirs = environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *theirs]))}


def end_with_parent(number: int) -> Callable[[], None]:
    """Return a `preexec_fn`: the child gets this signal when the thread that starts it is gone.

    It gets it even if the parent is killed.
    """
    parent = os.getpid()

    def prepare() -> None:
        if _prctl:
            _prctl(_DEATH_SIGNAL, number)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def cpu_threads(environ: Mapping[str, str], processes: int = 1) -> dict[str, str]:
    """Return the thread settings of each of `processes` programs on this machine's CPU.

    A user's own settings win. OpenMP's threads wait busily by default: as soon as anything else
    runs, two of them are slower than one, and the thousands of short waits of a small model are a
    hundred times slower.
    """
    threads = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return {name: environ.get(name, value) for name, value in threads.items()}


def compile_cache(environ: Mapping[str, str], otherwise: Path | None = None) -> dict[str, str]:
    """Return where torch keeps compiled code, which it runs again: the user's cache or `otherwise`.

    torch's default is /tmp/torchinductor_USER, which another user of the machine may have made.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    caches = Path(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    try:
        (caches / "torchinductor").mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to
        return {name: environ.get(name, str(otherwise / "compiled"))} if otherwise else {}
    return {name: environ.get(name, str(caches / "torchinductor"))}


def torch_program(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a torch program that is not a rank of a run."""
    return {
        **inherited(environ),
        **child_path(environ),
        **cpu_threads(environ),
        **compile_cache(environ),
    }
