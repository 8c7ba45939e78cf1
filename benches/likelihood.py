"""Requests a second of the likelihood, batched against one at a time, on a CPU.

A request is a context and a continuation of multiple-choice size. `forwards` scores one padded
canvas a forward; `requests` one request a call, all its draws together; `batched` is the product's
way. All give the same values. The last line is one JSON object.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from plugin.base import quiet  # noqa: E402, F401  # before anything that imports torch
from plugin.evaluation.subject import TOKENS  # noqa: E402
from plugin.models.diffusion import DiffusionModel  # noqa: E402
from plugin.models.load import build_model  # noqa: E402
from plugin.sampling.likelihood import (  # noqa: E402
    ESTIMATORS,
    LikelihoodSettings,
    ScoreRequest,
    likelihoods,
)
from plugin.sampling.scores import ModelScores  # noqa: E402

MASK, PAD = 4, 0
SIZES = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "vocab_size": 2048,
    },
    "small": {
        "hidden_size": 384,
        "intermediate_size": 576,
        "num_hidden_layers": 6,
        "vocab_size": 32768,
    },
}
Way = Callable[[Sequence[ScoreRequest]], list[float]]


def make_requests(count: int, vocabulary: int) -> list[ScoreRequest]:
    """Return requests of 12 to 40 tokens of context and 2 to 8 of continuation."""
    rng = np.random.default_rng(0)
    found: list[ScoreRequest] = []
    for number in range(count):
        ids = rng.integers(5, vocabulary, 64).astype(np.int32)
        start, length = int(rng.integers(12, 41)), int(rng.integers(2, 9))
        found.append(
            ScoreRequest(
                context=ids[:start], continuation=ids[start : start + length], draw=(number,)
            )
        )
    return found


def make_ways(size: str, settings: LikelihoodSettings, backend: str | None) -> dict[str, Way]:
    special = dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id"), PAD)
    special |= {"bos_token_id": PAD, "eos_token_id": PAD}
    fields = {"num_attention_heads": 4, "max_position_embeddings": 512, **special, **SIZES[size]}
    config = AutoConfig.for_model("modernbert", **fields)
    torch.manual_seed(0)
    model = build_model(config)
    plain = ModelScores(DiffusionModel(copy.deepcopy(model), PAD).eval(), settings, MASK)
    packed = ModelScores(DiffusionModel(model, PAD, backend).eval(), settings, MASK)

    def together(
        requests: Sequence[ScoreRequest], tokens: int, score: ModelScores = packed
    ) -> list[float]:
        found = dict(likelihoods(score, requests, settings, MASK, tokens=tokens))
        return [found[number].value for number in range(len(requests))]

    return {
        "forwards": lambda requests: [together([one], 1, plain)[0] for one in requests],
        "requests": lambda requests: [together([one], TOKENS["cpu"])[0] for one in requests],
        "batched": lambda requests: together(requests, TOKENS["cpu"]),
    }


def measure(
    ways: dict[str, Way], requests: Sequence[ScoreRequest], rounds: int
) -> dict[str, float]:
    """Return requests a second of CPU time by way: medians over interleaved rounds."""
    values = {name: way(requests) for name, way in ways.items()}  # also warms up
    for name, found in values.items():
        worst = max(abs(a - b) for a, b in zip(found, values["batched"], strict=True))
        assert worst < 1e-2, f"{name}: values differ by {worst}"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            way(requests)
            seconds[name].append(time.process_time() - began)
    return {name: len(requests) / statistics.median(took) for name, took in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", choices=("loop", "padded"), default="loop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    requests = make_requests(options.requests, SIZES[options.size]["vocab_size"])
    backend = None if options.backend == "padded" else options.backend
    rates: dict[str, dict[str, float]] = {}
    for estimator in ESTIMATORS:
        settings = LikelihoodSettings(estimator=estimator, draws=options.draws)
        ways = make_ways(options.size, settings, backend)
        rates[estimator] = measure(ways, requests, options.rounds)
        shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates[estimator].items())
        print(f"{estimator}: requests/s {shown}", file=sys.stderr)
    speedup = {name: round(of["batched"] / of["forwards"], 2) for name, of in rates.items()}
    over_requests = {name: round(of["batched"] / of["requests"], 2) for name, of in rates.items()}
    result = {
        "size": options.size,
        "backend": options.backend,
        "requests_per_s": {
            name: {way: round(rate, 2) for way, rate in of.items()} for name, of in rates.items()
        },
        "speedup": speedup,
        "speedup_over_requests": over_requests,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
