"""Speed of the samplers: caches and rules against the plain sampler, on a model that knows its texts.

`python benches/sampling_speed.py` trains a small LLaDA from scratch until it knows four texts of 256
tokens by heart, answers their prompts one at a time with every setting in turn, and prints JSON last.
`speedup`, `forwards_share` and `same_text` are those of `dual` with a threshold of .9.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benches.job import Bench  # noqa: E402
from plugin.inference.ask import answer_of, dialogue, request_of  # noqa: E402
from plugin.inference.model import LoadedModel, load_for_sampling  # noqa: E402

LENGTH, BLOCK = 256, 32
MODEL = {
    "model_type": "llada",
    "vocab_size": 512,
    "d_model": 192,
    "n_heads": 6,
    "n_layers": 4,
    "mlp_hidden_size": 512,
    "max_sequence_length": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
TRAINING = {
    "training_method": "llada",
    "batch_size": 8,
    "max_length": 320,
    "learning_rate": 2e-3,
    "eos_block_length": BLOCK,
    "t_min": 0.1,
    "eval_strategy": "no",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"},
    "threshold": {"threshold": 0.9},
    "entropy_bound": {"entropy_bound": 0.1},
    "dual_threshold": {"cache": "dual", "threshold": 0.9},
    "dual_factor": {"cache": "dual", "factor": 1.0},
    "dual_entropy_bound": {"cache": "dual", "entropy_bound": 0.1},
}
LONGEST_S = 1500  # of the training
# issue 15's bars of dual_threshold
LEAST_SPEEDUP, MOST_FORWARDS = 4.0, 0.4


def texts(rows: int, words: int) -> list[tuple[str, str]]:
    """Return prompts and random answers of short words, each a token or two."""
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    return [
        (f"Recite text {number}.", " ".join(rng.choice(syllables) for _ in range(words)))
        for number in range(rows)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--rounds", type=int, default=3, help="of timing; the median counts")
    parser.add_argument("--bars", action="store_true", help="fail naming every bar missed")
    parser.add_argument(
        "--rehearse", action="store_true", help="a few steps: every path, no figure"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), options)
    print(json.dumps(figures))
    missed = [
        *(["another text"] if not figures["same_text"] else []),
        *([f"speedup {figures['speedup']}"] if figures["speedup"] < LEAST_SPEEDUP else []),
        *(
            [f"forwards {figures['forwards_share']}"]
            if figures["forwards_share"] > MOST_FORWARDS
            else []
        ),
    ]
    for line in missed if options.bars else ():
        print(f"missed: {line}", file=sys.stderr)
    return int(options.bars and bool(missed))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    known = texts(2 if options.rehearse else 4, 60 if options.rehearse else 230)
    run = _train(folder, known, 3 if options.rehearse else options.steps)
    torch.set_num_threads(1)
    loaded = load_for_sampling(str(run))
    rounds = [
        {
            name: _answered(loaded, known, values, options.rehearse)
            for name, values in SETTINGS.items()
        }
        for _ in range(1 if options.rehearse else options.rounds)
    ]
    plain, found = rounds[0]["plain"], {}
    for name in SETTINGS:
        one = rounds[0][name]
        seconds = statistics.median(
            each[name]["seconds"] / each["plain"]["seconds"] for each in rounds
        )
        found[name] = {
            "tokens_per_s": round(one["tokens"] / one["seconds"], 1),
            "speedup": round(one["tokens"] / plain["tokens"] / seconds, 2),
            "forwards": one["nfe"],
            "forwards_share": round(one["nfe"] / plain["nfe"], 3),
            "tokens_per_forward": round(one["tokens"] / one["nfe"], 2),
            "same_text": one["texts"] == plain["texts"],
            "known": sum(a == b for a, (_, b) in zip(one["texts"], known, strict=True)),
        }
    fast = found["dual_threshold"]
    keys = ("speedup", "forwards_share", "same_text")
    return {key: fast[key] for key in keys} | {"texts": len(known), "settings": found}


def _train(folder: Path, known: Sequence[tuple[str, str]], steps: int) -> Path:
    (folder / "model.json").write_text(json.dumps(MODEL))
    rows = [{"prompt": prompt, "response": text} for prompt, text in known]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = Bench(folder, rehearse=True).train(
        folder / "run",
        TRAINING
        | {
            "model_config": folder / "model.json",
            "dataset_name": folder / "texts.jsonl",
            "train_steps": steps,
        },
        longest_s=LONGEST_S,
    )
    if ended.code:
        raise SystemExit(ended.line)
    return ended.folder


def _answered(
    loaded: LoadedModel, known: Sequence[tuple[str, str]], values: Mapping[str, Any], rehearse: bool
) -> dict[str, Any]:
    """Answer every prompt by itself and return texts, forwards, tokens and seconds."""
    longest = {"max_new_tokens": 32 if rehearse else LENGTH}
    settings = loaded.settings_with({**longest, **values})
    requests = [request_of(loaded, dialogue(prompt)) for prompt, _ in known]
    began = time.perf_counter()
    found = dict(loaded.stream(requests, 1, settings=settings))
    seconds = time.perf_counter() - began
    answers = [answer_of(loaded, one, found[number]) for number, one in enumerate(requests)]
    return {
        "texts": [answer.text for answer in answers],
        "nfe": sum(answer.nfe for answer in answers),
        "tokens": sum(answer.tokens for answer in answers),
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
