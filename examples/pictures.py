"""`make pictures`: the README's pictures, and TensorBoard's other tabs in runs/pictures.

A small model learns from scratch to spell numbers, a few minutes on two CPU cores; a tenth of them
are held out, so its curves show learning and not memory. TensorBoard serves the run to a headless
Chromium. The steps that `chat` shows while an answer denoises are drawn as an SVG, one frame below
the other, for a number that the model has never seen. `--run RUN` takes an existing run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

from plugin.commands.chat import Chatter, answer_line, canvas_line, load_chatter  # noqa: E402
from plugin.data.documents import Documents  # noqa: E402
from plugin.data.turns import Turn  # noqa: E402

NUMBERS = range(1000, 10_000)
TRAINING = {
    "train_steps": "2000",
    "batch_size": "32",
    "max_length": "64",
    "learning_rate": "3e-3",
    "eos_block_length": "16",
    "eval_steps": "100",
    "logging_steps": "20",
    "adaptor_name": "numbers",
}
SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"

CURVES = "train/(loss|masked_acc)|eval/loss($|_t00|_t50|_t90)"
TABS = {
    "scalars": f"#scalars&_smoothingWeight=0&tagFilter={quote(CURVES, safe='')}",
    "text": "#text",
    "histograms": "#histograms",
    "hparams": "#hparams",
}
SIZE = "1500,736"
SERVED_S, DRAWN_MS = 60, 20_000
TESTED, SHOWN, FRAMES, WIDTH = 100, 2, 8, 72


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


def train(run_dir: Path) -> None:
    """Train in `run_dir` by the public command."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    data, model = run_dir.parent / "numbers.jsonl", run_dir.parent / "model.json"
    rows = [{"prompt": f"Spell {number}.", "response": spelled(number)} for number in NUMBERS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # Few words, so that a number is seen digit by digit.
    model.write_text(
        json.dumps(
            json.loads((ROOT / "examples" / "demo_model.json").read_text()) | {"vocab_size": 320}
        )
    )
    options = {"model_config": model, "dataset_name": data, "run_dir": run_dir, **TRAINING}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(ROOT / "main.py"), "train", *words], cwd=ROOT, check=True)


@contextmanager
def board(run_dir: Path) -> Iterator[str]:
    """Yield the address of a TensorBoard that has read the run to its end."""
    from tensorboard.program import (
        TensorBoard,
    )  # warns when it is imported, which the tests of this file take for a fault

    named = run_dir / "board"  # what a run is called there is its path below this folder
    named.mkdir(exist_ok=True)
    if not (named / "numbers").exists():
        (named / "numbers").symlink_to("../tb")
    server = TensorBoard()
    server.configure(
        argv=[
            "tensorboard",
            "--logdir",
            os.path.relpath(named),
            "--port",
            "0",
            "--load_fast",
            "false",
        ]
    )
    address = server.launch()
    until = time.monotonic() + SERVED_S
    while True:
        with urllib.request.urlopen(f"{address}data/plugin/scalars/tags") as answer:
            if any(
                "hparams/loss" in tags for tags in json.load(answer).values()
            ):  # a run's last words
                break
        if time.monotonic() > until:
            raise TimeoutError(
                f"TensorBoard has not read {run_dir / 'tb'} in {SERVED_S} s: did the run end?"
            )
        time.sleep(0.2)
    yield address


def photograph(browser: str, address: str, path: Path) -> None:
    """Save a page as a PNG, once it has had DRAWN_MS of its own time to draw itself."""
    unboxed = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox
    options = [
        "--headless=new",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={SIZE}",
        *unboxed,
    ]
    options += [f"--virtual-time-budget={DRAWN_MS}", f"--screenshot={path}"]
    done = subprocess.run([browser, *options, address], capture_output=True, text=True, check=False)
    if done.returncode or not path.exists():
        raise RuntimeError(f"{browser} drew no {path.name}: {done.stderr[-500:]}")


def denoising(chatter: Chatter, prompts: list[str]) -> str:
    """Return prompts and answers as a terminal shows them, with frames on the way, as an SVG.

    The SVG loads nothing from elsewhere.
    """
    console = Console(
        record=True, width=WIDTH, file=StringIO(), force_terminal=True, highlight=False
    )
    for number, prompt in enumerate(prompts):
        turns = [Turn("user", prompt)]
        start = chatter.chat.prompt(turns).size
        canvases: list[list[int]] = []
        (answer,) = chatter.answer(
            [turns], lambda rows, start=start, kept=canvases: kept.append(rows[0][start:].tolist())
        )
        console.print(Text.assemble("\n" if number else "", ("you  ", "bold cyan"), prompt))
        for place in np.linspace(0, len(canvases) - 2, FRAMES).astype(int):
            console.print(canvas_line(chatter.chat, canvases[place]))
        console.print(answer_line(answer))
    local = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(
        title="python main.py chat RUN",
        code_format=local.replace("Fira Code", "ui-monospace, Menlo, Consolas"),
    )


def held_out(run_dir: Path) -> list[int]:
    """Return TESTED of the numbers that the run did not train on, seeded."""
    rows = Documents.load(run_dir / "data" / "eval").rows  # `<file>.jsonl:<line>`
    return random.Random(0).sample(
        [NUMBERS[int(row.rpartition(":")[2]) - 1] for row in rows], TESTED
    )


def draw_chat(run_dir: Path, path: Path) -> float:
    """Draw the first SHOWN held-out numbers as an SVG. Returns the share of TESTED spelled right."""
    chatter, numbers = load_chatter(str(run_dir), {}), held_out(run_dir)
    path.write_text(
        denoising(chatter, [f"Spell {number}." for number in numbers[:SHOWN]]), encoding="utf-8"
    )
    answers = chatter.answer([[Turn("user", f"Spell {number}.")] for number in numbers])
    return (
        sum(answer.text == spelled(number) for answer, number in zip(answers, numbers, strict=True))
        / TESTED
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run of this script that is there")
    given = parser.parse_args().run
    browser = next(
        (
            found
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (found := shutil.which(name))
        ),
        None,
    )
    if browser is None:
        print(
            "pictures: no chromium is here, which draws TensorBoard's pages; install it (Debian: chromium)",
            file=sys.stderr,
        )
        return 1
    run_dir: Path = (
        given.absolute() if given else ROOT / "runs" / "pictures" / time.strftime("%Y-%m-%d-%H%M%S")
    )
    if given is None:
        train(run_dir)
    with board(run_dir) as address:
        for name, page in TABS.items():
            photograph(browser, address + page, run_dir / f"{name}.png")
            print(run_dir / f"{name}.png", flush=True)
    DOCS.mkdir(exist_ok=True)
    curves, chat = DOCS / "curves.png", DOCS / "chat.svg"
    shutil.copy(run_dir / "scalars.png", curves)
    share = draw_chat(run_dir, chat)
    photograph(browser, chat.as_uri(), run_dir / "chat.png")
    print(
        json.dumps({"share": share, **{path.name: path.stat().st_size for path in (curves, chat)}})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
