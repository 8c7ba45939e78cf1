"""A causal LM converted on GSM8K: block diffusion, full-attention diffusion and next-token prediction.

`python benches/a2d_gsm8k.py --model DIR --data train.jsonl` trains the model of DIR three times by the
product's own loop, on the same documents in the same order: `block` (training_method block, two
complementary copies), `full` (llada, two complementary masks) and `ar` (causal). In each, every
answer token is predicted once in a pass. The last 500 problems of the file are never trained on. On
them `main.py evaluate` scores exact answers, and the nats of an answer token: the bound of a
diffusion model, the exact value of a causal one.

DIR: a model folder of transformers, such as benches/smollm2.py makes. The file: GSM8K's own, a JSON
object {question, answer} a line. The default is about ten minutes of one GPU for SmolLM2-135M;
`--seeds 3` trains each arm three times. `--rehearse` needs neither: a tiny causal model trained here
and made-up rows, on a CPU. The last line is one JSON object: for each arm {loss_first, loss_last, n,
correct, stderr, bound, bound_stderr, protocol}, `correct` being the share of n problems answered
exactly.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benches.job import Bench, device_name, evaluate, versions  # noqa: E402

HELD_OUT = 500  # problems at the end of the file
LONGEST = 512  # tokens of a document
ARMS: dict[str, dict[str, object]] = {
    "block": {"training_method": "block", "block_size": 16, "block_views": 2},
    "full": {"training_method": "llada", "complementary": True, "eos_policy": "single"},
    "ar": {"training_method": "causal"},
}
TRAINING: dict[str, object] = {
    "loss_norm": "token",
    "max_length": LONGEST,
    "batch_size": 32,
    "learning_rate": 1.5e-4,
    "learning_rate_schedule": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.01,
    "eval_strategy": "no",
    "logging_steps": 10,
    "save_total_limit": 1,
}
NEW_TOKENS = 256  # of an answer; the longest of the file has 400
TINY: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
    "tie_word_embeddings": True,
}
REHEARSED: dict[str, object] = {
    "max_length": 128,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
}
LONGEST_S = 3000  # of one training


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a causal LM (Llama, Qwen2, Qwen3)")
    parser.add_argument("--data", type=Path, help="GSM8K's train.jsonl")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each arm")
    parser.add_argument("--steps", type=int, default=650, help="of each training: three passes")
    parser.add_argument("--held_out", type=int, default=HELD_OUT, help="problems scored")
    parser.add_argument("--save", type=Path, help="JSON file of the figures")
    parser.add_argument("--bars", action="store_true", help="exit 1 naming every missed bar")
    parser.add_argument("--rehearse", action="store_true", help="every path on a CPU, no figure")
    options = parser.parse_args()
    if not options.rehearse and not (options.model and options.data):
        parser.error("give --model and --data, or --rehearse")
    with tempfile.TemporaryDirectory() as name:
        figures = _play(Path(name), options)
    if options.save:
        options.save.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    misses = missed(figures) if options.bars else []
    for miss in misses:
        print(f"bar missed: {miss}", file=sys.stderr)
    print(json.dumps(figures))
    return int(bool(misses))


def _play(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    on_cpu = options.rehearse or options.device == "cpu"
    bench = Bench(folder, on_cpu, {"OMP_NUM_THREADS": "1"} if options.rehearse else {})
    held_out, values, new_tokens = options.held_out, dict(TRAINING), NEW_TOKENS
    if options.rehearse:
        held_out, new_tokens = 4, 8
        values |= REHEARSED | {"train_steps": 4}
        (folder / "rows.jsonl").write_text(_lines(made_up(24)), encoding="utf-8")
        train, test = split(folder, folder / "rows.jsonl", held_out)
        values["model_name"] = _tiny_base(bench, train)
    else:
        train, test = split(folder, options.data, held_out)
        values |= {"model_name": options.model, "train_steps": options.steps}
    figures: dict[str, Any] = {
        "device": "rehearsal on a CPU" if on_cpu else device_name(rehearse=False),
        "versions": versions(),
        "held_out": held_out,
        "steps": values["train_steps"],
    }

    def play(arm: str) -> dict[str, Any]:
        found, protocol = [], {}
        for seed in range(1 if options.rehearse else options.seeds):
            began = time.perf_counter()
            own = ARMS[arm] | {"dataset_name": train, "seed": seed}
            run = _train(bench, f"{arm}-{seed}", values | own)
            scores = _score(run, test, new_tokens)
            found.append(one_figure(run, scores))
            protocol = scores["tasks"]["gsm8k"]["protocol"]
            line = json.dumps({"arm": arm, "seed": seed, **found[-1]})
            print(f"{line} after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        return over_seeds(found) | {"protocol": protocol}

    with ThreadPoolExecutor(2 if options.rehearse else 1) as pool:  # a GPU for each in turn
        return figures | dict(zip(ARMS, pool.map(play, ARMS), strict=True))


def split(folder: Path, file: Path, held_out: int) -> tuple[Path, Path]:
    """Write the file's rows but the last `held_out`, and these, each to a file of its own."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) > held_out, f"{file} has {len(lines)} rows"
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    train.write_text("\n".join(lines[:-held_out]) + "\n", encoding="utf-8")
    test.write_text("\n".join(lines[-held_out:]) + "\n", encoding="utf-8")
    return train, test


def made_up(count: int) -> list[dict[str, str]]:
    """Return problems in the form of GSM8K's."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        first, second = rng.randint(2, 9), rng.randint(2, 9)
        total = first + second
        rows.append(
            {
                "question": f"Ann has {first} pens and buys {second} more. How many has she?",
                "answer": f"She has {first} + {second} = <<{first}+{second}={total}>>{total} pens."
                f"\n#### {total}",
            }
        )
    return rows


def _lines(rows: Sequence[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _tiny_base(bench: Bench, rows: Path) -> Path:
    """Train a tiny causal LM from scratch: a folder such as those that are converted."""
    config = bench.root / "tiny.json"
    config.write_text(json.dumps(TINY), encoding="utf-8")
    values = TRAINING | REHEARSED | ARMS["ar"] | {
        "model_config": config,
        "dataset_name": rows,
        "train_steps": 6,
    }  # fmt: skip
    return _train(bench, "base", values) / "fused"


def _train(bench: Bench, name: str, values: Mapping[str, object]) -> Path:
    on = {"train_device": bench.device}
    ended = bench.train(bench.root / name, {**values, **on}, longest_s=LONGEST_S)
    if ended.code:
        raise SystemExit(ended.line)
    return ended.folder


def _score(run: Path, test: Path, new_tokens: int) -> dict[str, Any]:
    """Return evaluation.json: exact answers, and the nats of an answer token."""
    tasks = ("--tasks", f"gsm8k={test}", f"loss={test}")
    return evaluate(run, *tasks, "--max_new_tokens", str(new_tokens))


def one_figure(run: Path, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one training."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    exact, bound = scores["results"]["gsm8k"]["exact_match"], scores["results"]["loss"]["loss"]
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "n": scores["tasks"]["gsm8k"]["rows"],
        "correct": exact["value"],
        "stderr": exact["stderr"],
        "bound": bound["value"],
        "bound_stderr": bound["stderr"],
    }


def over_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean figures of several trainings, with the standard error of their mean.

    One training has the standard error over its problems.
    """
    if len(found) == 1:
        return dict(found[0])
    mean = {name: statistics.mean(one[name] for one in found) for name in found[0]}
    for name, error in (("correct", "stderr"), ("bound", "bound_stderr")):
        mean[error] = statistics.stdev(one[name] for one in found) / math.sqrt(len(found))
    return mean | {"n": found[0]["n"], "seeds": [dict(one) for one in found]}


def missed(figures: Mapping[str, Any]) -> list[str]:
    """Name the bars that the figures miss: block's bound below full's by three standard errors."""
    block, full = figures["block"], figures["full"]
    error = math.hypot(block["bound_stderr"], full["bound_stderr"])
    if full["bound"] - block["bound"] >= 3 * error:  # not so for figures that are no numbers
        return []
    return [
        f"block bound {block['bound']:.4f}, full {full['bound']:.4f}, standard error {error:.4f}"
    ]


if __name__ == "__main__":
    sys.exit(main())
