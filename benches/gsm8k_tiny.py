"""GSM8K from file to score: a small model learns a slice by heart, and `evaluate` scores that slice.

`python benches/gsm8k_tiny.py` trains a LLaDA of 1.8 M parameters from scratch on the first problems of
../shared/data/gsm8k and scores the same ones twice by `main.py evaluate`: with the settings that the
model was saved with, and with a threshold and the dual cache. It proves the road, not a skill: JSON
last, `exact_match` near 1 says that training, sampling, decoding and the filter agree.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benches.job import Bench, evaluate  # noqa: E402

SOURCE = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
LONGEST = 448  # tokens of a document and positions of the model
MODEL = {
    "model_type": "llada",
    "vocab_size": 1024,
    "d_model": 192,
    "n_heads": 6,
    "n_layers": 4,
    "mlp_hidden_size": 512,
    "max_sequence_length": LONGEST,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
TRAINING = {
    "training_method": "llada",
    "batch_size": 8,
    "max_length": LONGEST,
    "learning_rate": 2e-3,
    "learning_rate_schedule": "wsd",
    "decay_ratio": 0.3,
    "eos_block_length": 16,
    "t_min": 0.1,
    "complementary": True,
    "eval_strategy": "no",
}
FAST = ("--threshold", "0.9", "--cache", "dual")
LONGEST_S = 1500  # of the training


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--steps", type=int, default=350, help="of training")
    parser.add_argument(
        "--rehearse", action="store_true", help="a few steps: every path, no figure"
    )
    options = parser.parse_args()
    rows, steps = (2, 3) if options.rehearse else (options.rows, options.steps)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        problems = folder / "problems.jsonl"
        with open(SOURCE, encoding="utf-8") as file:
            problems.write_text("".join(next(file) for _ in range(rows)), encoding="utf-8")
        run = _train(folder, problems, steps)
        plain, fast = _score(run, problems), _score(run, problems, *FAST)
    same = ("exact_match", "flexible")
    figures = {
        "rows": rows,
        "steps": steps,
        **{key: plain["results"]["gsm8k"][key]["value"] for key in same},
        **{f"fast_{key}": fast["results"]["gsm8k"][key]["value"] for key in same},
        "forwards": plain["nfe"],
        "fast_forwards": fast["nfe"],
        "seconds": round(time.perf_counter() - began, 1),
        "protocol": plain["tasks"]["gsm8k"]["protocol"],
    }
    print(json.dumps(figures))
    return 0


def _train(folder: Path, problems: Path, steps: int) -> Path:
    (folder / "model.json").write_text(json.dumps(MODEL))
    values = TRAINING | {
        "model_config": folder / "model.json",
        "dataset_name": problems,
        "train_steps": steps,
    }
    ended = Bench(folder, rehearse=True).train(folder / "run", values, longest_s=LONGEST_S)
    if ended.code:
        raise SystemExit(ended.line)
    return ended.folder


def _score(run: Path, problems: Path, *options: str) -> dict[str, Any]:
    tasks = ("--tasks", f"gsm8k={problems}")
    return evaluate(run, *tasks, *options, "--max_new_tokens", "256")


if __name__ == "__main__":
    sys.exit(main())
