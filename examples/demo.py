"""`make demo`: a small ModernBERT learns English dialogues by heart from scratch, then chats.

It is memorisation and is called that: some 550 question-answer pairs of the package
chatterbot-corpus (BSD), a model of 0.9 M parameters, a few minutes on two CPU cores. Everything
happens through the public command `main.py train`.
"""

from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from importlib import resources
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plugin.commands.chat import Chatter, load_chatter  # noqa: E402
from plugin.data.documents import Documents  # noqa: E402
from plugin.data.turns import Turn  # noqa: E402
from plugin.run.folder import RunFolder  # noqa: E402

LONGEST_ANSWER = 50  # characters; up to 25 tokens
TESTED = 100
SHOWN = 5
TRAINING = {
    "model_config": str(ROOT / "examples" / "demo_model.json"),
    "train_steps": "4500",
    "batch_size": "32",
    "learning_rate": "4e-3",
    "warmup_ratio": "0.05",
    "max_length": "96",
    "t_min": "0.1",
    "eos_block_length": "16",
    "logging_steps": "50",
    "adaptor_name": "demo",
}


def dialogues() -> Iterator[tuple[str, str]]:
    """Yield the first question and answer of every English conversation, in the corpus's order.

    Each distinct pair comes once.
    """
    seen: set[tuple[str, str]] = set()
    folder = resources.files("chatterbot_corpus") / "data" / "english"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yml"):
            for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
                pair = (
                    (str(turns[0]).strip(), str(turns[1]).strip()) if len(turns) > 1 else ("", "")
                )
                if all(pair) and pair not in seen:
                    seen.add(pair)
                    yield pair


def share_known(chatter: Chatter, known: dict[str, set[str]], trained: list[str]) -> float:
    """Return the share of trained prompts answered word for word as in the corpus.

    TESTED prompts are drawn with a seed.
    """
    prompts = random.Random(0).sample(trained, TESTED)
    answers = chatter.answer([[Turn("user", prompt)] for prompt in prompts])
    right = [
        words(answer.text) in known[prompt] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    for prompt, answer, ok in list(zip(prompts, answers, right, strict=True))[:SHOWN]:
        print(f"  {prompt}\n    {'=' if ok else '≠'} {answer.text}")
    return sum(right) / TESTED


def words(text: str) -> str:
    return " ".join(text.split())


def main() -> int:
    began = time.perf_counter()
    pairs = [(prompt, answer) for prompt, answer in dialogues() if len(answer) <= LONGEST_ANSWER]
    run_dir = ROOT / "runs" / f"{datetime.now():%Y-%m-%d-%H%M%S}-demo"
    data = ROOT / "runs" / f"{run_dir.name}.jsonl"
    data.parent.mkdir(exist_ok=True)
    data.write_text(
        "".join(
            json.dumps({"prompt": prompt, "response": answer}) + "\n" for prompt, answer in pairs
        ),
        encoding="utf-8",
    )

    options = {"dataset_name": str(data), "run_dir": str(run_dir), **TRAINING}
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "train",
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    ]
    print(f"training on {len(pairs)} pairs with a tenth of the rows held out; the same by hand:")
    print("  python main.py train " + shlex.join(command[3:]), flush=True)
    trained = subprocess.run(command, cwd=ROOT, check=False)
    if trained.returncode:
        return trained.returncode

    known: dict[str, set[str]] = {}
    for prompt, answer in pairs:
        known.setdefault(prompt, set()).add(words(answer))
    rows = Documents.load(run_dir / "data" / "train").rows  # `<file>.jsonl:<line>`
    prompts = sorted({pairs[int(row.rpartition(":")[2]) - 1][0] for row in rows})
    print(f"\n{SHOWN} of {TESTED} training prompts, answered by the fused model:")
    share = share_known(load_chatter(str(run_dir), {}), known, prompts)

    result = RunFolder(run_dir).read_run().result
    assert result, "the run has ended"
    assert result.throughput, "it has trained"
    print("\nnext:")
    print(f"  python main.py chat {shlex.quote(str(run_dir))}")
    print(f"  .venv/bin/tensorboard --logdir {shlex.quote(str(run_dir / 'tb'))}")
    summary = {
        "seconds": round(time.perf_counter() - began, 1),
        "tokens_per_s": result.throughput.tokens_per_s,
        "eval_loss_first": result.eval_loss_first,
        "eval_loss_last": result.eval_loss,
        "share": share,
        "pairs": len(pairs),
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
