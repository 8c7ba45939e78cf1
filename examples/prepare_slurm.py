"""Steps of `prepare` over many machines, by datatrove's executors: Slurm, Ray, or this machine.

    pip install datatrove==0.10.1
    python examples/prepare_slurm.py --config F --out DIR --tasks 64 --executor slurm --partition cpu

Every machine needs this repository, its environment, the data and DIR on a shared disk. datatrove
starts the tasks, waits for one step before the next, and starts lost tasks again when it is run
again. The work is that of `main.py prepare --task k/N`: each task does every N-th part of a step.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datatrove.executor.base import PipelineExecutor  # noqa: E402
from datatrove.pipeline.base import PipelineStep  # noqa: E402

from plugin.commands.prepare import main as prepare  # noqa: E402

# The steps that many machines share; up to each of the others, one task does the rest.
SHARED = ("sign", "bands", "tokens")
STEPS = ("list", "sign", "bands", "tokenizer", "tokens", "seal")


class PrepareStep(PipelineStep):
    """One step of `prepare`, as datatrove runs it: task `rank` of `world_size`."""

    name = "prepare"
    type = "diffusion-llm-trainer"

    def __init__(self, step: str, config: str, out: str):
        super().__init__()
        self.step, self.config, self.out = step, config, out

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        words = ["--config", self.config, "--out", self.out, "--stop_after", self.step]
        words += ["--num_proc", "1"]
        if world_size > 1:
            words += ["--task", f"{rank + 1}/{world_size}"]
        if code := prepare(words):
            raise RuntimeError(f"prepare ended with exit code {code}; its lines say why")
        yield from ()


def pipeline(options: argparse.Namespace) -> PipelineExecutor:
    """Return the executor of the last step, which runs the earlier ones before it."""
    last: PipelineExecutor | None = None
    for step in STEPS:
        tasks = options.tasks if step in SHARED else 1
        last = executor(options, step, tasks, last)
    assert last is not None
    return last


def executor(
    options: argparse.Namespace, step: str, tasks: int, before: PipelineExecutor | None
) -> PipelineExecutor:
    given: dict[str, Any] = {
        "pipeline": [PrepareStep(step, str(options.config), str(options.out))],
        "tasks": tasks,
        "logging_dir": str(options.logs / step),
        "depends": before,
    }
    if options.executor == "slurm":
        from datatrove.executor.slurm import SlurmPipelineExecutor

        return SlurmPipelineExecutor(
            **given,
            job_name=f"prepare-{step}",
            partition=options.partition,
            time=options.time,
            mem_per_cpu_gb=options.memory_gb,
            workers=options.workers,
            env_command=f"cd {ROOT} && . .venv/bin/activate",
        )
    if options.executor == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor(**given, workers=options.workers)
    from datatrove.executor.local import LocalPipelineExecutor

    return LocalPipelineExecutor(**given, workers=options.workers, start_method="spawn")


def read_options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="on a disk that all machines share")
    parser.add_argument("--tasks", type=int, default=8, help="tasks of a shared step")
    parser.add_argument("--workers", type=int, default=-1, help="tasks that run together")
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--logs", type=Path, help="datatrove's logs (default: OUT-logs)")
    parser.add_argument("--partition", default="", help="of Slurm")
    parser.add_argument("--time", default="04:00:00", help="limit of a Slurm task")
    parser.add_argument("--memory_gb", type=int, default=4, help="of a Slurm task")
    options = parser.parse_args(argv)
    options.config, options.out = options.config.resolve(), options.out.resolve()
    options.logs = options.logs or options.out.with_name(f"{options.out.name}-logs")
    return options


if __name__ == "__main__":
    pipeline(read_options(sys.argv[1:])).run()
