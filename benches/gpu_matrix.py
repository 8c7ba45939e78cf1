"""The product on a real GPU, as users start it: `make gpu`, at most eight minutes.

Every method, in full, LoRA and QLoRA, packed and padded, with recomputation and compiled layers:
trained for a few steps, resumed, and compared bit by bit with the unbroken run, several jobs in
parallel. Then a run out of memory, a STOP, a kill -9 and a job of a real size. Predicted memory is
listed next to the memory taken. One table, and one JSON file under benches/results/.

`--rehearse` runs every path on a CPU with one cell a method: it proves the code, not a figure.
Works from a tree without git, with the installed packages; missing ones are named.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

from plugin.base.environment import require  # noqa: E402

require(ROOT)

from job import LONGEST_S, Bench, Ended, device_name, finish, versions  # noqa: E402

METHODS = ("bert", "llada", "dream", "block")
KINDS: dict[str, dict[str, object]] = {
    "full": {},
    "lora": {"lora": True},
    "qlora": {"lora": True, "load_in_4bit": True},
}
LAYOUTS: dict[str, dict[str, object]] = {"packed": {"packing": "on"}, "padded": {"packing": "off"}}
WAYS: dict[str, dict[str, object]] = {
    "plain": {"recompute": "none", "compile": "off"},
    "selective": {"recompute": "selective", "compile": "off"},
    "full-compiled": {"recompute": "full", "compile": "on"},
    "captured": {"recompute": "none", "compile": "off", "cuda_graphs": True},
}
ROWS, STEPS = 96, 4
WORDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "sky",
    "sun",
    "snow",
    "coal",
    "rose",
    "sea",
    "leaf",
    "gold",
    "milk",
)

# Heads 64 wide, which varlen takes; the vocabulary of the tokenizer trained on the rows.
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {
        "model_type": "modernbert",
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
    }
    | {"num_attention_heads": 4, "max_position_embeddings": 1024},
    "llada": {
        "model_type": "llada",
        "d_model": 256,
        "n_heads": 4,
        "n_layers": 4,
        "mlp_hidden_size": 768,
    }
    | {"max_sequence_length": 1024, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5},
    "dream": {
        "model_type": "Dream",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
    }
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    | {"rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6},
    "block": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
    }
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
}
REAL = {
    "model_type": "modernbert",
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
}
REAL |= {"num_hidden_layers": 22, "num_attention_heads": 12, "max_position_embeddings": 8192}


def write_data(root: Path) -> Path:
    rng = random.Random(0)
    rows = [
        {
            "prompt": f"Say {' '.join(rng.choices(WORDS, k=3))}.",
            "response": " ".join(rng.choices(WORDS, k=rng.randint(1, 60))),
        }
        for _ in range(ROWS)
    ]
    path = root / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def common(bench: Bench, data: Path) -> dict[str, object]:
    return {
        "dataset_name": data,
        "train_device": bench.device,
        "dtype": "bfloat16",
        "max_length": 256,
        "batch_size": 8,
        "train_steps": STEPS,
        "save_steps": 2,
        "save_total_limit": 3,
        "eval_strategy": "no",
        "learning_rate": 1e-3,
        "warmup_ratio": 0,
        "logging_steps": 1,
    }


NARROW = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "d_model": 64,
    "n_layers": 2,
    "mlp_hidden_size": 96,
}


def make_bases(bench: Bench, data: Path) -> dict[str, Path]:
    """Train a base of each method from scratch for two steps: a folder as users have one."""

    def make(method: str) -> tuple[str, Ended]:
        config = bench.root / f"{method}.json"
        fields = {"vocab_size": 384, **CONFIGS[method]}
        if bench.rehearse:
            fields |= {name: value for name, value in NARROW.items() if name in fields}
        config.write_text(json.dumps(fields), encoding="utf-8")
        values = common(bench, data) | {
            "model_config": config,
            "training_method": method,
            "train_steps": 2,
            "dtype": "float32",
        }
        return method, bench.train(bench.root / f"base-{method}", values)

    with ThreadPoolExecutor(len(METHODS)) as pool:
        made = dict(pool.map(make, METHODS))
    if broken := {method: ended.line for method, ended in made.items() if ended.code}:
        raise SystemExit(f"no base could be made: {broken}")
    return {method: ended.folder / "fused" for method, ended in made.items()}


def weights_equal(first: Path, second: Path) -> bool:
    from safetensors.torch import load_file

    for file in sorted(first.glob("*.safetensors")):
        one, other = load_file(file), load_file(second / file.name)
        if one.keys() != other.keys() or any(not one[key].equal(other[key]) for key in one):
            return False
    return True


def play_cell(
    bench: Bench, cell: tuple[str, str, str, str], base: Path, data: Path
) -> dict[str, Any]:
    """Train, resume from the middle, compare: one row of the table."""
    method, kind, layout, way = cell
    values = common(bench, data) | {
        "model_name": base,
        "training_method": method,
        "fuse_model": way == "plain" or "false",
    }
    values |= KINDS[kind] | LAYOUTS[layout] | WAYS[way]
    folder = bench.root / "-".join(cell)
    whole = bench.train(folder, values)
    row: dict[str, Any] = {"code": whole.code}
    if whole.code:
        return row | {"error": whole.line}
    result = whole.result()
    row |= {"tokens_per_s": result["throughput"]["tokens_per_s"], "taken": result["memory"]["peak"]}
    row |= {"foretold": (result["memory"]["estimate"] or {}).get("peak")}
    if "fuse" in result:
        row["fused_difference"] = result["fuse"]["max_logit_difference"]
    log = (folder / "log.txt").read_text(encoding="utf-8")
    row["no_fixed_order"] = sorted(
        {line for line in log.splitlines() if "adds in no fixed order" in line}
    )
    row["warnings"] = sorted({line for line in log.splitlines() if "Warning" in line})
    for choice in ("attention", "cuda_graphs"):
        row[choice] = next((line for line in log.splitlines() if line.startswith(f"{choice}:")), "")
    if "cuda_graphs" in WAYS[way] and "off;" in row["cuda_graphs"]:
        return row | {"error": row["cuda_graphs"]}
    broken = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-resumed")))
    for number in range(3, STEPS + 1):
        shutil.rmtree(broken / f"checkpoint-{number}", ignore_errors=True)
    resumed = bench.train(broken, values | {"resume": True})
    row["resumed"] = resumed.code
    if resumed.code:
        return row | {"error": resumed.line}
    last = f"checkpoint-{STEPS}"
    return row | {"bit_equal": weights_equal(folder / last, broken / last)}


def play_out_of_memory(bench: Bench, base: Path, data: Path) -> dict[str, Any]:
    """Ask for far more than there is: exit 5, with advice."""
    many, limit = (1920, 1_000_000_000) if bench.rehearse else (60_000, 0)
    big = bench.root / "big.jsonl"
    big.write_text(data.read_text(encoding="utf-8") * (many // ROWS), encoding="utf-8")
    values = common(bench, data) | {
        "dataset_name": big,
        "model_name": base,
        "batch_size": many,
        "eos_policy": "batch",
    }
    values |= {"packing": "off", "recompute": "none", "compile": "off"}
    ended = bench.train(bench.root / "out-of-memory", values, limit)
    return {
        "code": ended.code,
        "as_promised": ended.code == 5 and "Same effective batch" in ended.line,
        "line": ended.line,
    }


def wait_for_step(folder: Path, step: int) -> None:
    """Return once the run has made `step` steps; a run that ends first shows its own exit code."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        try:
            if json.loads((folder / "progress.json").read_text(encoding="utf-8"))["step"] >= step:
                return
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.1)


def interrupted(
    bench: Bench, base: Path, data: Path, name: str, interrupt: Callable[[Path, int], None]
) -> dict[str, Any]:
    """Interrupt a long run at its third step, then resume it for two steps more."""
    folder = bench.root / name
    values = common(bench, data) | {
        "model_name": base,
        "train_steps": 100_000,
        "save_steps": 2,
        "fuse_model": "false",
    }
    values |= {"compile": "off"}
    process = bench.start(folder, values)
    wait_for_step(folder, 3)
    interrupt(folder, process.pid)
    ended = finish(process, folder)
    outcome = ended.result().get("outcome")
    steps = (
        max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0) + 2
    )
    resumed = bench.train(folder, values | {"resume": True, "train_steps": steps})
    return {
        "code": ended.code,
        "outcome": outcome,
        "line": ended.line,
        "resumed": resumed.code,
        "after": resumed.line,
    }


def kill_worker(_: Path, parent: int) -> None:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


def play_stop(bench: Bench, base: Path, data: Path) -> dict[str, Any]:
    row = interrupted(bench, base, data, "stopped", lambda folder, _: (folder / "STOP").touch())
    return row | {"as_promised": (row["code"], row["outcome"], row["resumed"]) == (0, "stopped", 0)}


def play_kill(bench: Bench, base: Path, data: Path) -> dict[str, Any]:
    row = interrupted(bench, base, data, "killed", kill_worker)
    return row | {
        "as_promised": (row["code"], row["resumed"]) == (8, 0) and "SIGKILL" in row["line"]
    }


def play_real(bench: Bench, data: Path) -> dict[str, Any]:
    """Run a job of a real size through both programs.

    ModernBERT-base is trained from scratch, compiled, evaluated and fused.
    """
    config = bench.root / "real.json"
    narrow = (
        {"num_hidden_layers": 2, "vocab_size": 512, "hidden_size": 96} if bench.rehearse else {}
    )
    config.write_text(json.dumps(REAL | narrow), encoding="utf-8")
    values = common(bench, data) | {
        "model_config": config,
        "training_method": "bert",
        "dtype": "auto",
        "compile": "auto",
    }
    values |= {
        "train_steps": 4 if bench.rehearse else 120,
        "batch_size": 8 if bench.rehearse else 48,
        "eval_strategy": "steps",
    }
    values |= {"save_steps": 0.5, "eval_on_start": "false"}
    ended = bench.train(bench.root / "real", values)
    if ended.code:
        return {"code": ended.code, "line": ended.line, "as_promised": False}
    result = ended.result()
    kept = {
        "tokens_per_s": result["throughput"]["tokens_per_s"],
        "mfu": result["throughput"]["mfu"],
    }
    memory = {
        "taken": result["memory"]["peak"],
        "foretold": (result["memory"]["estimate"] or {}).get("peak"),
    }
    return {"code": 0, "as_promised": True, "seconds": result["seconds"], **kept, **memory}


def print_cell(cell: Sequence[str], row: Mapping[str, Any]) -> None:
    equal = {True: "bit-equal", False: "DIFFERS", None: "-"}[row.get("bit_equal")]
    speed = f"{row['tokens_per_s']:,.0f} tokens/s" if "tokens_per_s" in row else ""
    known = row.get("foretold") and row.get("taken")
    memory = f"foretold / taken {row['foretold'] / row['taken']:.2f}" if known else ""
    print(
        f"{' '.join(cell):<34}{row['code']!s:<4}{equal:<11}{speed:>18}  {memory}{row.get('error', '')}",
        flush=True,
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rehearse", action="store_true", help="every path on a CPU, one cell a method"
    )
    parser.add_argument(
        "--jobs", type=int, default=0, help="jobs at once (default: 8 on a GPU, 2 in a rehearsal)"
    )
    parser.add_argument(
        "--save", type=Path, help="JSON file (default on a GPU: benches/results/gpu-DATE.json)"
    )
    options = parser.parse_args(argv)
    began = time.monotonic()
    # Compiling takes a minute a job next to seven others: packed layers alone, which users compile.
    cells = [
        cell
        for cell in product(METHODS, KINDS, LAYOUTS, WAYS)
        if cell[2] == "packed" or cell[3] in ("plain", "selective")
    ]
    cells = [cell for cell in cells if (cell[1], cell[3]) != ("qlora", "captured")]
    # Rows with noisy copies are always packed, and their attention is in no graph.
    cells = [
        cell
        for cell in cells
        if cell[0] != "block" or (cell[2] == "packed" and cell[3] != "captured")
    ]
    if options.rehearse:
        cells = [
            ("bert", "lora", "packed", "plain"),
            ("llada", "qlora", "padded", "selective"),
            ("dream", "full", "packed", "plain"),
            ("block", "lora", "packed", "plain"),
        ]
    skipped = ""
    if find_spec("bitsandbytes") is None:
        skipped = "bitsandbytes is missing: no QLoRA"
        cells = [cell for cell in cells if cell[1] != "qlora"]
    print(
        f"{device_name(options.rehearse)}; {', '.join(f'{name} {found}' for name, found in versions().items())}"
    )
    if skipped:
        print(skipped)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(
            Path(scratch), options.rehearse, {} if options.rehearse else {"OMP_NUM_THREADS": "1"}
        )
        data = write_data(bench.root)
        bases = make_bases(bench, data)
        events: dict[str, Callable[[], dict[str, Any]]] = {
            "out of memory": lambda: play_out_of_memory(bench, bases["bert"], data),
            "STOP": lambda: play_stop(bench, bases["bert"], data),
            "kill -9": lambda: play_kill(bench, bases["bert"], data),
        }
        played: dict[str, dict[str, Any]] = {}
        with ThreadPoolExecutor(options.jobs or (2 if options.rehearse else 8)) as pool:
            rows = {
                cell: pool.submit(play_cell, bench, cell, bases[cell[0]], data) for cell in cells
            }
            for cell, row in rows.items():
                print_cell(cell, row.result())
            others = {
                name: pool.submit(play) for name, play in events.items() if name != "out of memory"
            }
            played = {name: other.result() for name, other in others.items()}
        # Alone on the device: one job fills it, the other is timed.
        played["out of memory"] = events["out of memory"]()
        played["real size"] = play_real(bench, data)
        for name, row in played.items():
            print(
                f"{name:<34}{row['code']!s:<6}{'as promised' if row['as_promised'] else 'NOT AS PROMISED':<17}{row.get('line', '')}"
            )
        found = {cell: row.result() for cell, row in rows.items()}
    table = {" ".join(cell): row for cell, row in found.items()} | played
    bad = [
        name for name, row in table.items() if not (row.get("bit_equal") or row.get("as_promised"))
    ]
    report = {
        "device": device_name(options.rehearse),
        "versions": versions(),
        "skipped": skipped,
        "table": table,
        "bad": bad,
    }
    report["seconds"] = round(time.monotonic() - began, 1)
    save = options.save or (
        None if options.rehearse else ROOT / "benches" / "results" / f"gpu-{date.today()}.json"
    )
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {
                "device": report["device"],
                "cells": len(found),
                "bad": bad,
                "seconds": report["seconds"],
            }
        )
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
