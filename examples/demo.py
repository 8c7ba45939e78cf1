"""`make demo`: a small model learns from scratch to spell numbers, then chats.

It is tested on numbers that were held out, so what it shows is learned and not memorised: 0.4 M
parameters, under three minutes on two CPU cores.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.spelling import (  # noqa: E402
    NUMBERS,
    TESTED,
    held_out,
    prompt_of,
    share_right,
    spelled,
    spellings,
    train,
)
from plugin.inference.model import load_for_sampling  # noqa: E402
from plugin.run.folder import RunFolder  # noqa: E402

SHOWN = 5
TRAINING = {
    "train_steps": "1500",
    "warmup_ratio": "0.05",
    "t_min": "0.1",  # the weights 1 / t of lower times make the loss noisy
    "eval_share": "0.02",
    "eval_steps": "250",
    "logging_steps": "50",
    "adaptor_name": "demo",
}


def summary(run_dir: Path, seconds: float, share: float) -> dict[str, float | None]:
    """Return the figures of a run and of its answers."""
    result = RunFolder(run_dir).read_run().result
    assert result, "the run has ended"
    assert result.throughput, "it has trained"
    assert result.published, "it has published a model"
    return {
        "seconds": round(seconds, 1),
        "tokens_per_s": result.throughput.tokens_per_s,
        "eval_loss_first": result.eval_loss_first,
        "eval_loss_last": result.eval_loss,
        "eval_loss_published": result.published.eval_loss,
        "share": share,
        "pairs": len(NUMBERS),
    }


def main() -> int:
    began = time.perf_counter()
    run_dir = ROOT / "runs" / f"{datetime.now():%Y-%m-%d-%H%M%S}-demo"
    print(f"training on {len(NUMBERS)} numbers, a few of them held out; the same by hand:")
    if code := train(run_dir, **TRAINING):
        return code
    numbers = held_out(run_dir)
    found = spellings(load_for_sampling(str(run_dir)), numbers)
    print(f"\n{SHOWN} of {TESTED} held-out numbers, answered by the published model:")
    for number, text in list(zip(numbers, found, strict=True))[:SHOWN]:
        print(f"  {prompt_of(number)}\n    {'=' if text == spelled(number) else '≠'} {text}")
    chat = ["chat", str(run_dir)]
    print("\nnext:")
    print(f"  python main.py {shlex.join(chat)}")
    print(f"  .venv/bin/tensorboard --logdir {shlex.quote(str(run_dir / 'tb'))}")
    seconds = time.perf_counter() - began
    print(json.dumps(summary(run_dir, seconds, share_right(numbers, found))), flush=True)
    if sys.stdin.isatty() and sys.stdout.isatty():
        return subprocess.run(
            [sys.executable, str(ROOT / "main.py"), *chat], check=False
        ).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
