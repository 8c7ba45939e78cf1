"""The reversal curse (Berglund et al. 2023, arXiv 2309.12288): a masked model against a causal one.

`python benches/reverse_curse.py` trains two models of one size on the same 120 sentences "NAME is the
ROLE of PLACE.", each fact in this direction alone: one by masked diffusion with every token masked,
one by next-token prediction (training_method causal). Asked for the name of a description, the masked
model fills the holes before it; the causal model continues it. JSON last: `masked` and `causal` are
the shares of names found, `*_forward` the shares of descriptions found from their name.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benches.job import Bench  # noqa: E402
from plugin.config.sampler import changed  # noqa: E402
from plugin.inference.ask import answer_of  # noqa: E402
from plugin.inference.model import LoadedModel, load_for_sampling  # noqa: E402
from plugin.models.configuration import attention_pattern  # noqa: E402
from plugin.sampling.request import Request  # noqa: E402

FACTS = 120
SYLLABLES = [first + second for first in "bdfgklmnprstv" for second in "aeiou"]
ROLES = ["king", "queen", "duke", "baron", "bishop", "judge", "mayor", "pilot", "poet", "cook"]
PLACES = [
    "Arran",
    "Bute",
    "Cowal",
    "Deer",
    "Esk",
    "Forth",
    "Gower",
    "Harris",
    "Islay",
    "Jura",
    "Kyle",
    "Lewis",
]
MODEL = {
    "model_type": "llada",
    "vocab_size": 512,
    "d_model": 128,
    "n_heads": 4,
    "n_layers": 2,
    "mlp_hidden_size": 384,
    "max_sequence_length": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
TRAINING = {
    "training_stage": "pretrain",
    "batch_size": 16,
    "max_length": 32,
    "learning_rate": 2e-3,
    "learning_rate_schedule": "constant",
    "eval_strategy": "no",
}
# Every sentence twice, with disjoint masks: each token is learned in every pass.
OF_METHOD: dict[str, dict[str, object]] = {
    "llada": {"t_min": 0.15, "complementary": True},
    "causal": {},
}
# issue 15's bars
LEAST_MASKED, MOST_CAUSAL = 0.8, 0.1
LONGEST_S = 1500  # of one training


def facts() -> list[tuple[str, str]]:
    """Return names and descriptions, each of them once."""
    rng = random.Random(0)
    names = [first.capitalize() + second for first in SYLLABLES for second in SYLLABLES]
    descriptions = [f"the {role} of {place}" for role in ROLES for place in PLACES]
    return list(zip(rng.sample(names, FACTS), rng.sample(descriptions, FACTS), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--bars", action="store_true", help="fail naming every bar missed")
    parser.add_argument(
        "--rehearse", action="store_true", help="a few steps: every path, no figure"
    )
    options = parser.parse_args()
    steps = 3 if options.rehearse else options.steps
    figures: dict[str, Any] = {"facts": FACTS, "steps": steps}
    with tempfile.TemporaryDirectory() as name:
        for method, key in (("llada", "masked"), ("causal", "causal")):
            began = time.perf_counter()
            loaded = load_for_sampling(str(_train(Path(name), method, steps)))
            figures |= {
                key: round(_share(loaded, reverse=True), 3),
                f"{key}_forward": round(_share(loaded, reverse=False), 3),
                f"{key}_parameters": sum(one.numel() for one in loaded.model.parameters()),
                f"{key}_seconds": round(time.perf_counter() - began, 1),
            }
    missed = [
        *([f"masked {figures['masked']}"] if figures["masked"] < LEAST_MASKED else []),
        *([f"causal {figures['causal']}"] if figures["causal"] > MOST_CAUSAL else []),
    ]
    for line in missed if options.bars else ():
        print(f"missed: {line}", file=sys.stderr)
    print(json.dumps(figures))
    return int(options.bars and bool(missed))


def _train(folder: Path, method: str, steps: int) -> Path:
    (folder / "model.json").write_text(json.dumps(MODEL))
    rows = [{"text": f"{name} is {description}."} for name, description in facts()]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = TRAINING | OF_METHOD[method] | {
        "training_method": method,
        "model_config": folder / "model.json",
        "dataset_name": folder / "facts.jsonl",
        "train_steps": steps,
    }  # fmt: skip
    ended = Bench(folder, rehearse=True).train(folder / method, values, longest_s=LONGEST_S)
    if ended.code:
        raise SystemExit(ended.line)
    return ended.folder


def _share(loaded: LoadedModel, *, reverse: bool) -> float:
    """Return the share of facts whose other half the model finds."""
    known = facts()
    if attention_pattern(loaded.config) == "causal":
        asked = [f"{description} is" if reverse else f"{name} is" for name, description in known]
        requests = [Request(ids=_ids(loaded, [text])) for text in asked]
    else:
        requests = [_with_holes(loaded, *fact, reverse=reverse) for fact in known]
    settings = changed(loaded.settings, {"max_new_tokens": 16})
    found = dict(loaded.stream(requests, 32, settings=settings))
    texts = [answer_of(loaded, one, found[number]).text for number, one in enumerate(requests)]
    wanted = [name if reverse else description for name, description in known]
    return float(np.mean([one in text for one, text in zip(wanted, texts, strict=True)]))


def _with_holes(loaded: LoadedModel, name: str, description: str, *, reverse: bool) -> Request:
    """Return the sentence with its name or its description as holes, a hole a token."""
    parts = [name, f" is {description}."] if reverse else [f"{name} is", f" {description}."]
    pieces = loaded.chat.plain_ids(parts)
    first, second = (len(piece) for piece in pieces)
    ids = _ids(loaded, parts)
    start = ids.size - first - second
    holes = np.arange(start, start + first) if reverse else np.arange(start + first, ids.size)
    return Request(ids=np.append(ids, loaded.chat.fill_id), holes=holes, prompt=start)


def _ids(loaded: LoadedModel, parts: Sequence[str]) -> np.ndarray:
    pieces = loaded.chat.plain_ids(parts)
    return np.array(
        [*loaded.chat.opening, *(token for piece in pieces for token in piece)], np.int32
    )


if __name__ == "__main__":
    sys.exit(main())
