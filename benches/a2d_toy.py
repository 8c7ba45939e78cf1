"""The same conversion twice: a small causal LM becomes a block-diffusion model and a full-attention one.

`python benches/a2d_toy.py` trains a causal LM of 0.1 M parameters from scratch on sentences of a small
grammar by the product's own loop (training_method causal), then converts it by `block` (blocks of 8, two
complementary copies) and by `llada` (full attention, two complementary masks): the same documents, the
same steps, the same learning rate, each token predicted once in a pass. On held-out sentences
`main.py evaluate` measures the bound of each, in nats a token, and the causal model's exact value.
Three seeds. The claim (Efficient-DLM, arXiv 2512.14067, table 1, in points of accuracy): block is below full.
JSON last; `--bars` fails where a seed misses that.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benches.job import Bench, evaluate  # noqa: E402

MODEL: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
TRAINING: dict[str, object] = {
    "training_stage": "pretrain",
    "loss_norm": "token",
    "max_length": 96,
    "batch_size": 8,
    "learning_rate_schedule": "constant",
    "eval_strategy": "no",
    "logging_steps": 20,
    "save_total_limit": 1,
    "train_device": "cpu",
}
BASE: dict[str, object] = {"training_method": "causal", "learning_rate": 3e-3}
ARMS: dict[str, dict[str, object]] = {
    "block": {"training_method": "block", "block_size": 8, "block_views": 2},
    "full": {"training_method": "llada", "complementary": True},
}
CONVERTED: dict[str, object] = {"learning_rate": 1e-3}
SEEDS = 3
NAMES = ("Ann", "Bob", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal")
THINGS = ("pens", "cups", "hats", "keys", "nuts", "figs", "eggs", "bags")
LONGEST_S = 1500  # of one training


def sentences(count: int, seed: int) -> list[dict[str, str]]:
    """Return texts of three sums each, whose totals are certain and whose names and numbers are not."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        parts = []
        for _ in range(3):
            name, thing = rng.choice(NAMES), rng.choice(THINGS)
            first, second = rng.randint(1, 9), rng.randint(1, 9)
            total = first + second
            parts.append(f"{name} has {first} {thing}, buys {second} and has {total} {thing}.")
        rows.append({"text": " ".join(parts)})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, help="of the causal training")
    parser.add_argument("--converted", type=int, default=200, help="steps of each conversion")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--save", type=Path, help="JSON file of the figures")
    parser.add_argument("--bars", action="store_true", help="exit 1 naming every missed bar")
    parser.add_argument("--rehearse", action="store_true", help="a few steps: no figure")
    options = parser.parse_args()
    if options.rehearse:
        options.steps, options.converted, options.seeds = 3, 3, 1
    figures: dict[str, Any] = {"steps": options.steps, "converted": options.converted, "seeds": []}
    began = time.perf_counter()
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as name:
            found = _play(Path(name), seed, options)
        figures["seeds"].append(found)
        print(json.dumps(found), file=sys.stderr, flush=True)
    figures["seconds"] = round(time.perf_counter() - began, 1)
    if options.save:
        options.save.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    misses = missed(figures) if options.bars else []
    for miss in misses:
        print(f"bar missed: {miss}", file=sys.stderr)
    print(json.dumps(figures))
    return int(bool(misses))


def _play(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return {causal, block, full}: nats of a held-out token and their standard errors."""
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    few = options.rehearse
    for file, rows in (
        (train, sentences(64 if few else 1500, seed)),
        (test, sentences(8 if few else 300, 10_000 + seed)),
    ):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "model.json").write_text(json.dumps(MODEL), encoding="utf-8")
    common = TRAINING | {"dataset_name": train, "seed": seed}
    first = BASE | {"model_config": folder / "model.json", "train_steps": options.steps}
    base = _train(folder / "causal", common | first)
    found = {"seed": seed, "causal": _bound(base, test)}
    for arm, own in ARMS.items():
        values = CONVERTED | {"model_name": base / "fused", "train_steps": options.converted}
        found[arm] = _bound(_train(folder / arm, common | values | own), test)
    return found


def _train(folder: Path, values: Mapping[str, object]) -> Path:
    ended = Bench(folder.parent, rehearse=True).train(folder, values, longest_s=LONGEST_S)
    if ended.code:
        raise SystemExit(ended.line)
    return ended.folder


def _bound(run: Path, test: Path) -> dict[str, float]:
    loss = evaluate(run, "--tasks", f"loss={test}")["results"]["loss"]["loss"]
    return {"bound": loss["value"], "stderr": loss["stderr"]}


def missed(figures: Mapping[str, Any]) -> list[str]:
    """Name each seed whose block bound is not below its full one by three standard errors."""
    return [
        f"seed {one['seed']}: block {one['block']['bound']:.4f}, full {one['full']['bound']:.4f}"
        for one in figures["seeds"]
        if not one["full"]["bound"] - one["block"]["bound"]
        >= 3 * math.hypot(one["full"]["stderr"], one["block"]["stderr"])
    ]


if __name__ == "__main__":
    sys.exit(main())
