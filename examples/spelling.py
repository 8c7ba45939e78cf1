"""Numbers in words: the task of `make demo` and `make pictures`.

A small model learns from scratch to spell the numbers from 1000 to 9999. Some of them are held out:
what it spells right of those it has learned in general, not by heart. Everything happens through the
public command `main.py train`.
"""

from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plugin.data.documents import Documents  # noqa: E402
from plugin.inference.ask import answers, dialogue  # noqa: E402
from plugin.inference.model import LoadedModel  # noqa: E402

NUMBERS = range(1000, 10_000)
TESTED = 100
TRAINING = {
    # 320 tokens, few enough that a number is read digit by digit.
    "model_config": str(ROOT / "examples" / "demo_model.json"),
    "batch_size": "32",
    "max_length": "64",
    "learning_rate": "3e-3",
    "eos_block_length": "16",
}
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def spelled(number: int) -> str:
    """Return a number below ten thousand in English."""
    small, tens = SMALL.split(), TENS.split()
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            return f"{spelled(number // size)} {name}" + (f" {spelled(rest)}" if rest else "")
    if number < 20:
        return small[number]
    return tens[number // 10 - 2] + (f"-{small[number % 10]}" if number % 10 else "")


def prompt_of(number: int) -> str:
    return f"Spell {number}."


def train(run_dir: Path, **options: str) -> int:
    """Train in `run_dir`, its data next to it. Return the exit code of `main.py train`."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    data = run_dir.with_name(f"{run_dir.name}.jsonl")
    rows = [{"prompt": prompt_of(number), "response": spelled(number)} for number in NUMBERS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    named = {"dataset_name": str(data), "run_dir": str(run_dir), **TRAINING, **options}
    words = [word for name, value in named.items() for word in (f"--{name}", value)]
    print(f"python main.py train {shlex.join(words)}", flush=True)
    command = [sys.executable, str(ROOT / "main.py"), "train", *words]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def held_out(run_dir: Path) -> list[int]:
    """Return TESTED of the numbers that the run did not train on, seeded."""
    rows = Documents.load(run_dir / "data" / "eval").rows  # `<file>.jsonl:<line>`
    return random.Random(0).sample(
        [NUMBERS[int(row.rpartition(":")[2]) - 1] for row in rows], TESTED
    )


def spellings(loaded: LoadedModel, numbers: list[int]) -> list[str]:
    """Return the model's spelling of each number."""
    found = answers(loaded, [dialogue(prompt_of(number)) for number in numbers])
    return [answer.text for answer in found]


def share_right(numbers: list[int], found: list[str]) -> float:
    """Return the share of numbers whose answer is their spelling, to the letter."""
    right = [text == spelled(number) for number, text in zip(numbers, found, strict=True)]
    return sum(right) / len(right)
