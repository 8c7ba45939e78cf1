"""The product on one GPU: `make bench DEVICE=cuda`, each group of cases under four minutes.

A case is measured by gpu_measure.py through the worker's own code, in a process of its own: first
the first step with an empty compile cache, then all steps with a filled one, then the padded
full-logit reference on the same documents where there is one. A case that fails says why, and the
next is run. MFU is a share of a matrix product measured in the same process. The group `worker`
compares a job through `main.py train` with the bench on that job's steps.

`--rehearse` runs every path on a CPU with narrow models: it proves the code, not a figure. `--bars`
exits 1 and names every missed bar. `--table FILE` prints a results file for the README. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

from plugin.base import quiet  # noqa: E402, F401  # isort: skip  # before anything that imports torch

import torch  # noqa: E402
from bars import missed_on_gpu  # noqa: E402
from gpu_cases import GROUPS, Case  # noqa: E402
from gpu_report import markdown, results_file, save, table  # noqa: E402
from gpu_worker import NAME, play_worker  # noqa: E402
from job import LONGEST_S, Bench, device_name, versions, worker_environment  # noqa: E402
from rich.console import Console  # noqa: E402

RESULTS = ROOT / "benches" / "results"
Found = dict[str, Any]
Measure = Callable[[str], Found]


def run_tasks(
    tasks: Sequence[str], environment: Mapping[str, str], *, rehearse: bool
) -> dict[str, Found]:
    """Return the figures of each task, all of them measured by one process.

    A task that the process did not live to finish has the reason in place of figures.
    """
    command = [sys.executable, "-P", str(ROOT / "benches" / "gpu_measure.py"), *tasks]
    return read_tasks(command + ["--rehearse"] * rehearse, tasks, environment)


def read_tasks(
    command: Sequence[str], tasks: Sequence[str], environment: Mapping[str, str]
) -> dict[str, Found]:
    """Run a command that prints a JSON object a task; see run_tasks."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=LONGEST_S)
        why = (err.splitlines() or [""])[-1]
        ended = f"ended with code {process.returncode}: {why}"
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        ended = f"not finished after {LONGEST_S} s"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith('{"task"')]
    found = {line.pop("task"): line for line in lines}
    return {task: found.get(task, {"error": ended}) for task in tasks}


def play_case(case: Case, measure: Measure) -> Found:
    """Return the figures of a case."""
    title: Found = {"title": case.title}
    cold_task, warm_task, *reference_task = case.tasks
    cold = measure(cold_task)
    warm = cold if "error" in cold else measure(warm_task)
    if "error" in warm:
        return title | warm
    found = title | warm
    found |= {
        "first_step_cold_s": cold["first_step_s"],
        "first_step_warm_s": found.pop("first_step_s"),
    }
    for task in reference_task:
        found |= compare(warm, measure(task))
    return found


def compare(ours: Found, reference: Found) -> Found:
    """Return the reference, and how many times as fast and as large as it ours is."""
    if "error" in reference:
        return {"reference": reference}
    theirs = reference["steps_ms"]
    ratios = [one / other for one, other in zip(theirs, ours["steps_ms"], strict=False)]
    held = reference["peak_minus_weights_gb"]
    return {
        "reference": reference,
        "vs_padded": round(statistics.median(ratios), 2),
        "memory_vs_padded": round(ours["peak_minus_weights_gb"] / held, 3) if held else None,
    }


def play_group(name: str, bench: Bench, measure_in: Callable[[Path], Measure]) -> Iterator[Found]:
    """Yield {name of a case: its figures}. `measure_in` takes the folder of the compile cache."""
    if name == NAME:
        cache = bench.root / NAME
        environment = {**bench.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        own = Bench(bench.root, bench.rehearse, environment)
        yield {NAME: play_worker(own, measure_in(cache))}
    for case in GROUPS[name]:
        chosen = case.narrow() if bench.rehearse else case
        yield {case.name: play_case(chosen, measure_in(bench.root / case.name))}


def threads(rehearse: bool) -> dict[str, str]:
    """Return one thread for a rehearsal: its models are too narrow for more."""
    return {"OMP_NUM_THREADS": "1"} if rehearse else {}


def measurer(groups: Sequence[str], *, rehearse: bool) -> Callable[[Path], Measure]:
    """Return a function from the folder of a compile cache to one that measures a task.

    Each task has a process of its own. In a rehearsal, where nothing is compiled, one process
    measures the tasks of all cases: importing takes longer than they do.
    """
    environment = worker_environment("cpu" if rehearse else "cuda") | threads(rehearse)
    cases = [case for name in groups for case in GROUPS[name]] if rehearse else []
    tasks = [task for case in cases for task in case.tasks]
    done = run_tasks(tasks, environment, rehearse=rehearse) if tasks else {}

    def measure_in(cache: Path) -> Measure:
        own = {**environment, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        return lambda task: done.get(task) or run_tasks([task], own, rehearse=rehearse)[task]

    return measure_in


def measure_all(groups: Sequence[str], scratch: Path, path: Path, *, rehearse: bool) -> Found:
    """Return the report of the groups, written to `path` after each case."""
    report: Found = {
        "device": device_name(rehearse),
        "date": str(date.today()),
        "versions": versions(),
        "groups": {},
        "cases": {},
    }
    bench = Bench(scratch, rehearse, threads(rehearse))
    measure_in = measurer(groups, rehearse=rehearse)
    for name in groups:
        began = time.monotonic()
        for found in play_group(name, bench, measure_in):
            report["cases"] |= found
            report["groups"][name] = round(time.monotonic() - began, 1)
            save(report, path)
            print(json.dumps(found), file=sys.stderr, flush=True)  # minutes pass between cases
    return report


def refusal(groups: Sequence[str], *, rehearse: bool) -> str:
    """Return why these groups cannot be measured here, in one line; empty if they can."""
    unknown = [name for name in groups if name not in GROUPS]
    if unknown or not groups:
        known, got = ", ".join(GROUPS), ", ".join(unknown) or "none"
        return f"error[2]: cases: expected names among {known}, got {got}."
    if not rehearse and not torch.cuda.is_available():
        fix = "Use --rehearse to try the code on a CPU."
        return f"error[2]: device: expected a CUDA GPU, got none. {fix}"
    return ""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(GROUPS), help="groups, separated by commas")
    parser.add_argument("--rehearse", action="store_true", help="every path on the CPU, narrow")
    parser.add_argument("--bars", action="store_true", help="exit 1 naming every missed bar")
    parser.add_argument("--save", type=Path, help="JSON file (default: results/DEVICE-DATE.json)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a results file, and end")
    options = parser.parse_args(argv)
    if options.table:
        print(markdown(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    groups = [word.strip() for word in options.cases.split(",") if word.strip()]
    rehearse: bool = options.rehearse
    if line := refusal(groups, rehearse=rehearse):
        print(line, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        usual = results_file(scratch if rehearse else RESULTS, device_name(rehearse))
        report = measure_all(groups, scratch, options.save or usual, rehearse=rehearse)
    Console(width=200).print(table(report))
    misses = missed_on_gpu(report) if options.bars else []
    for miss in misses:
        print(f"bar missed: {miss}", file=sys.stderr)
    print(json.dumps(report))
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
