"""Cost of watching the workers, and a Transformer Lab user's wait for the first training line.

Overhead: one job trains on this CPU while the parent, which relays it, is stopped (SIGSTOP) and
resumed in turn, a few seconds each. Neighbouring blocks make a pair, so that other work of the
machine falls on both. A stopped parent costs exactly nothing, and what it missed it catches up on
afterwards, so the blocks in which it runs carry twice the usual load. Every call of the plugin-era
host takes 50 ms. A step's time is the training thread's, without its waits for a core that others
had (the kernel counts them), since machines are shared; what the parent may take from it there is
the parent's own processor time. `clock_...` is the same by the clock.

First line: from the start of that host's harness to the first line with a loss. Its SDK imports
torch, transformers' trainer and datasets, for the real one takes about ten seconds to import; for a
data set that only the SDK knows, it is imported before the workers start. The host is the contract
tests' stand-in. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from contract.drivers import FolderDriver, Host, Running, TlabDriver  # noqa: E402
from helpers.support import processes_naming  # noqa: E402

CALL_S = 0.05
SDK_IMPORTS = "torch transformers.trainer datasets"
ASKED = "rowsü"  # lies under a name that only the SDK knows
OVERHEAD_BAR, FIRST_LINE_BAR_S = 0.01, 40.0
SETTLE_S = 3.0  # after the first line, before the first block
CONFIG = {
    "model_type": "modernbert",
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
}
CONFIG |= {
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "global_attn_every_n_layers": 1,
}
TRAINS = re.compile(r"step \d+: loss ")


@dataclass
class Log:
    """A program's lines as they come, so that its pipe never fills up."""

    running: Running
    began: float = field(default_factory=time.monotonic)
    first: dict[str, float] = field(default_factory=dict)  # seconds until the first line of a kind
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.running.program.stdout
        for line in self.running.program.stdout:
            self.lines.append(line)
            kind = (
                "train"
                if TRAINS.match(line)
                else "run"
                if line.startswith("run folder:")
                else "any"
            )
            self.first.setdefault(kind, time.monotonic() - self.began)

    def wait_for(self, kind: str) -> float:
        while kind not in self.first:
            if self.running.program.poll() is not None:
                self._thread.join()
                raise RuntimeError("the job ended before it trained:\n" + "".join(self.lines[-20:]))
            time.sleep(0.01)
        return self.first[kind]


def make_inputs(root: Path) -> tuple[dict[str, object], Path]:
    """Return an endless job of documents of equal length, for equal steps, and its data file."""
    (root / "config.json").write_text(json.dumps(CONFIG))
    rows = [
        {"prompt": f"Count from {n}.", "response": " ".join(f"{n + k:03d}" for k in range(30))}
        for n in range(100, 164)
    ]
    data = root / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, object] = {
        "model_config": root / "config.json",
        "dataset_name": "rows",
        "train_device": "cpu",
        "batch_size": 4,
    }
    values |= {
        "max_length": 64,
        "train_steps": 10_000_000,
        "save_steps": 10_000_000,
        "eval_strategy": "no",
    }
    return values, data


def hosts(root: Path, data: Path) -> dict[str, Host]:
    slow = TlabDriver(root / "tlab", {"rows": data, ASKED: data})
    slow.env |= {"FAKE_CALL_S": str(CALL_S), "FAKE_IMPORTS": SDK_IMPORTS}
    return {"folder": FolderDriver(root / "folder", {"rows": data}), "tlab": slow}


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def queued_s(pid: int) -> float:
    """Return the seconds that a process's first thread, which trains, was ready and got no core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


@dataclass(frozen=True)
class Block:
    relays: bool
    begin: float
    end: float
    queued: float  # of its seconds


def told_steps(folder: Path) -> list[tuple[float, int]]:
    """Return (time, finished steps) of every line of metrics, by the worker's clock."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [
        (datetime.fromisoformat(event["time"]).timestamp(), event["step"])
        for event in events
        if event["type"] == "metrics"
    ]


def step_ms(told: list[tuple[float, int]], block: Block) -> tuple[float, float]:
    """Return the milliseconds of a step in a block: by the clock, and without waits for a core."""
    done = np.interp([block.begin, block.end], [at for at, _ in told], [step for _, step in told])
    seconds, steps = block.end - block.begin, float(done[1] - done[0])
    return 1000 * seconds / steps, 1000 * (seconds - block.queued) / steps


def compare(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Return the median extra time of a step, and its 95 % interval.

    `pairs` are (relayed, not relayed) milliseconds.
    """
    ratios = sorted(relayed / alone - 1 for relayed, alone in pairs)
    middle, reach = (
        len(ratios) / 2,
        round(0.98 * len(ratios) ** 0.5),
    )  # order statistics: whatever the distribution
    low, high = max(0, int(middle - reach)), min(len(ratios) - 1, int(middle + reach))
    return {
        "pairs": len(pairs),
        "step_ms": round(statistics.median(alone for _, alone in pairs), 2),
        "relayed_ms": round(statistics.median(relayed for relayed, _ in pairs), 2),
        "overhead": round(statistics.median(ratios), 5),
        "overhead_low": round(ratios[low], 5),
        "overhead_high": round(ratios[high], 5),
    }


def alternate(parent: int, worker: int, pairs: int, block_s: float) -> list[Block]:
    blocks: list[Block] = []
    for number in range(2 * pairs):
        relays = number % 4 in (
            0,
            3,
        )  # on off off on: a machine that becomes slower does so for both
        os.kill(parent, signal.SIGCONT if relays else signal.SIGSTOP)
        begin, queued = time.time(), queued_s(worker)
        time.sleep(block_s)
        blocks.append(Block(relays, begin, time.time(), queued_s(worker) - queued))
    return blocks


def overhead(
    host: Host, job: str, values: dict[str, object], pairs: int, block_s: float
) -> dict[str, float]:
    """Return the overhead over `pairs` pairs of blocks of one job, and its parent's share.

    The share is of a core.
    """
    running = host.start(job, values)
    log, parent = Log(running), running.program.pid
    log.wait_for("train")
    time.sleep(SETTLE_S)
    (worker,) = [pid for pid in processes_naming(str(running.folder)) if pid != parent]
    try:
        spent, began = processor_s(parent), time.time()
        blocks = alternate(parent, worker, pairs, block_s)
        os.kill(parent, signal.SIGCONT)
        share = (processor_s(parent) - spent) / (time.time() - began)
    finally:
        os.kill(parent, signal.SIGCONT)
        running.stop()
        running.program.wait()
    told = told_steps(running.folder)
    timed = [(block.relays, step_ms(told, block)) for block in blocks]
    both = [dict(timed[n : n + 2]) for n in range(0, len(timed), 2)]
    wall, own = ([(pair[True][kind], pair[False][kind]) for pair in both] for kind in (0, 1))
    by_clock = {f"clock_{name}": value for name, value in compare(wall).items() if name != "pairs"}
    return {**compare(own), **by_clock, "parent_processor_share": round(share, 5)}


def first_line(host: Host, job: str, values: dict[str, object]) -> dict[str, float]:
    running = host.start(job, values)
    log = Log(running)
    try:
        seconds = {"run folder": log.wait_for("run"), "training": log.wait_for("train")}
    finally:
        running.stop()
        running.program.wait()
    return {name: round(value, 2) for name, value in seconds.items()}


def measure(pairs: int, block_s: float, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        values, data = make_inputs(Path(root))
        there = hosts(Path(root), data)
        found = {name: overhead(host, "1", values, pairs, block_s) for name, host in there.items()}
        every = {**values, "logging_steps": 1}
        waiting = {name: (host, every) for name, host in there.items()}
        waiting["tlab, asked"] = there["tlab"], {**every, "dataset_name": ASKED}
        lines = [
            {
                name: first_line(host, f"{n}{number}", given)
                for number, (name, (host, given)) in enumerate(waiting.items())
            }
            for n in range(2, 2 + rounds)
        ]
    waits = {
        name: {kind: [line[name][kind] for line in lines] for kind in lines[0][name]}
        for name in waiting
    }
    medians = {
        name: {kind: statistics.median(seconds) for kind, seconds in kinds.items()}
        for name, kinds in waits.items()
    }
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "overhead": found,
        "first_line_s": medians,
        "first_lines_s": waits,
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{'host':8}{'step ms':>9}{'relayed':>9}{'overhead %':>12}{'95 %':>18}{'parent, % of a core':>22}"
    ]
    for name, row in found["overhead"].items():
        between = f"{100 * row['overhead_low']:.2f} .. {100 * row['overhead_high']:.2f}"
        cells = f"{row['step_ms']:9.2f}{row['relayed_ms']:9.2f}{100 * row['overhead']:12.2f}{between:>18}"
        lines.append(f"{name:8}{cells}{100 * row['parent_processor_share']:22.2f}")
    lines += [
        f"first line of training, {name}: {seconds['training']:.1f} s"
        for name, seconds in found["first_line_s"].items()
    ]
    return "\n".join(lines)


def missed(found: dict[str, Any]) -> list[str]:
    """Return the missed bars.

    A bar is missed when the full interval of the overhead lies above it (a machine with other work
    proves nothing else), or when the parent's share of a core does.
    """
    rows = found["overhead"].items()
    over = [f"{name}: overhead" for name, row in rows if row["overhead_low"] > OVERHEAD_BAR]
    over += [
        f"{name}: processor" for name, row in rows if row["parent_processor_share"] > OVERHEAD_BAR
    ]
    late = [
        f"{name}: first line"
        for name, row in found["first_line_s"].items()
        if row["training"] > FIRST_LINE_BAR_S
    ]
    return over + late


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--block_s", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3, help="of the time to the first line")
    parser.add_argument(
        "--rehearse", action="store_true", help="a few seconds of each, without bars"
    )
    parser.add_argument("--save", type=Path, help="write the JSON there too, with the command")
    options = parser.parse_args()
    # As in the contract: one thread, which leaves a core for the parent, and no hub.
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    found = (
        measure(2, 2.0, 1)
        if options.rehearse
        else measure(options.pairs, options.block_s, options.rounds)
    )
    below = [] if options.rehearse else missed(found)
    print(table(found))
    for bar in below:
        print(f"missed: {bar}", file=sys.stderr)
    if options.save:
        commit = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
        command = "python " + shlex.join([f"benches/{Path(__file__).name}", *sys.argv[1:]])
        saved = {"command": command, "commit": commit.stdout.strip(), **found}
        options.save.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"missed": below, **found}))
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
