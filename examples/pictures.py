"""`make pictures`: the README's pictures, and TensorBoard's other tabs in runs/pictures.

A small model learns from scratch to spell numbers, a few minutes on two CPU cores; a tenth of them
are held out, so its curves show learning and not memory. TensorBoard serves the run to a headless
Chromium. The steps that `chat` shows while an answer denoises are drawn as an SVG, one frame below
the other, for a number that the model has never seen; the studio shows the run and a chat with its
model. `--run RUN` takes an existing run.
"""

from __future__ import annotations

import argparse
import json
import os
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

from examples.spelling import held_out, prompt_of, share_right, spellings, train  # noqa: E402
from examples.studio_pictures import draw_studio  # noqa: E402
from plugin.inference.ask import answer_of, dialogue, request_of  # noqa: E402
from plugin.inference.model import LoadedModel, load_for_sampling  # noqa: E402
from plugin.inference.show import answer_line, canvas_line  # noqa: E402

TRAINING = {
    "train_steps": "2000",
    "eval_steps": "100",
    "logging_steps": "20",
    "adaptor_name": "numbers",
}
CURVES = "train/(loss|masked_acc)|eval/loss($|_t00|_t50|_t90)"
TABS = {
    "scalars": f"#scalars&_smoothingWeight=0&tagFilter={quote(CURVES, safe='')}",
    "text": "#text",
    "histograms": "#histograms",
    "hparams": "#hparams",
}
SIZE = "1500,736"
SERVED_S, DRAWN_MS = 60, 20_000
SHOWN, FRAMES, WIDTH = 2, 8, 72


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


def denoising(loaded: LoadedModel, prompts: list[str]) -> str:
    """Return prompts and answers as a terminal shows them, with frames on the way, as an SVG.

    The SVG loads nothing from elsewhere.
    """
    console = Console(
        record=True, width=WIDTH, file=StringIO(), force_terminal=True, highlight=False
    )
    for number, prompt in enumerate(prompts):
        canvases: list[list[int]] = []
        request = request_of(loaded, dialogue(prompt))
        ((_, sample),) = loaded.stream(
            [request],
            1,
            on_step=lambda number, step, ids, kept=canvases: kept.append(ids.tolist()),
        )
        answer = answer_of(loaded, request, sample)
        console.print(Text.assemble("\n" if number else "", ("you  ", "bold cyan"), prompt))
        for place in np.linspace(0, len(canvases) - 2, FRAMES).astype(int):
            console.print(canvas_line(loaded.chat, canvases[place]))
        console.print(answer_line(answer.text, f"{answer.steps} steps"))
    local = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(
        title="python main.py chat RUN",
        code_format=local.replace("Fira Code", "ui-monospace, Menlo, Consolas"),
    )


def draw_chat(run_dir: Path, path: Path) -> float:
    """Draw the first SHOWN held-out numbers as an SVG. Returns the share of TESTED spelled right."""
    loaded, numbers = load_for_sampling(str(run_dir)), held_out(run_dir)
    drawn = denoising(loaded, [prompt_of(number) for number in numbers[:SHOWN]])
    path.write_text(drawn, encoding="utf-8")
    return share_right(numbers, spellings(loaded, numbers))


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
    if given is None and (code := train(run_dir, **TRAINING)):
        return code
    with board(run_dir) as address:
        for name, page in TABS.items():
            photograph(browser, address + page, run_dir / f"{name}.png")
            print(run_dir / f"{name}.png", flush=True)
    DOCS.mkdir(exist_ok=True)
    curves, chat = DOCS / "curves.png", DOCS / "chat.svg"
    shutil.copy(run_dir / "scalars.png", curves)
    share = draw_chat(run_dir, chat)
    photograph(browser, chat.as_uri(), run_dir / "chat.png")
    drawn = [curves, chat, *draw_studio(browser, run_dir, prompt_of(held_out(run_dir)[0]), DOCS)]
    print(json.dumps({"share": share, **{path.name: path.stat().st_size for path in drawn}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
