"""Share of reports in a step: requests, heartbeat, counts, progress.json, metrics, TensorBoard.

A real run on this CPU has everything on except evaluation and saves, which are work and booked as
such. Every call out of the loop is timed where it happens; the rest of the step is the time of a
bare loop. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import plugin.base.quiet  # noqa: E402, F401  # before anything that imports torch
from plugin.config.parse import parse  # noqa: E402
from plugin.run.folder import RunFolder  # noqa: E402
from plugin.training import loop  # noqa: E402
from plugin.worker import train as program  # noqa: E402
from plugin.worker.rank import this_rank  # noqa: E402

CONFIG = {
    "model_type": "modernbert",
    "vocab_size": 2000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
}
CONFIG |= {
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "global_attn_every_n_layers": 1,
}
TOLD = ("requests", "log", "tick", "beat")


class Clock:
    """Seconds spent inside the functions it wraps: of the wall, and of this thread's processor."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            wall, processor = time.perf_counter(), time.thread_time()
            try:
                return function(*args)
            finally:
                self.wall += time.perf_counter() - wall
                self.processor += time.thread_time() - processor

        return timed


def measure(steps: int, logging_steps: int) -> dict[str, float]:
    """Return the milliseconds of a step, and of its reports, as means over all steps."""
    told, whole = Clock(), Clock()
    train, account = loop.train, loop._account

    def timed_train(*args: Any) -> Any:
        trainer, make_step, cadence, hooks, *rest = args
        hooks = replace(hooks, **{name: told(getattr(hooks, name)) for name in TOLD})
        return whole(train)(trainer, make_step, cadence, hooks, *rest)

    loop.train, loop._account = timed_train, told(account)
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "config.json").write_text(json.dumps(CONFIG))
        rows = [
            {"prompt": f"Count from {n}.", "response": " ".join(map(str, range(n, n + 120)))}
            for n in range(64)
        ]
        (Path(root) / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values: dict[str, object] = {
            "model_config": f"{root}/config.json",
            "dataset_name": f"{root}/rows.jsonl",
            "batch_size": 8,
        }
        values |= {
            "max_length": 256,
            "train_steps": steps,
            "save_steps": steps,
            "eval_strategy": "no",
            "fuse_model": False,
        }
        folder = RunFolder(Path(root) / "run")
        folder.create()
        params = parse(
            values | {"logging_steps": logging_steps, "run_dir": str(folder.path)}
        ).params
        rank = this_rank(params, folder)
        try:
            program.train_rank(rank)
        finally:
            rank.reporter.close()
            loop.train, loop._account = train, account
        saved = sum(
            json.loads(line).get("metrics", {}).get("time/save", 0.0)
            for line in (folder / "events.jsonl").open()
        )
    wall = (whole.wall - saved) / steps
    return {
        "step_ms": round(1000 * wall, 2),
        "told_ms": round(1000 * told.wall / steps, 3),
        "told_processor_ms": round(1000 * told.processor / steps, 3),
        "share": round(told.wall / (whole.wall - saved), 5),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    found = {f"logging_steps {every}": measure(options.steps, every) for every in (10, 1)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
