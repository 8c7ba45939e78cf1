"""Classifier-free guidance: held-out accuracy by scale, for a model trained with dropped prompts and without.

`python benches/cfg.py` trains the demo's model twice for too few steps to spell every number, once
with `prompt_drop` .1 (standard guidance) and once without (unsupervised guidance, SMDM, arXiv
2410.18514), and scores held-out numbers at each scale. JSON last: shares by scale.
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

from examples.spelling import TESTED, held_out, share_right, spellings, train  # noqa: E402
from plugin.inference.model import load_for_sampling  # noqa: E402

SCALES = (0.0, 0.25, 0.5, 1.0, 2.0)
DROPS = {"prompt_drop": "0.1", "unsupervised": "0"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=700, help="of each training")
    parser.add_argument(
        "--rehearse", action="store_true", help="a few steps: every path, no figure"
    )
    options = parser.parse_args()
    steps = 3 if options.rehearse else options.steps
    began, figures = time.perf_counter(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        for key, drop in DROPS.items():
            run = Path(name) / key
            if code := train(run, train_steps=str(steps), prompt_drop=drop):
                return code
            numbers = held_out(run)
            figures[key] = {
                f"{scale:g}": share_right(
                    numbers, spellings(load_for_sampling(str(run), {"cfg": scale}), numbers)
                )
                for scale in SCALES
            }
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({**figures, "steps": steps, "tested": TESTED, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
