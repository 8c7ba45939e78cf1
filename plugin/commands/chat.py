"""Chat with a trained model: `main.py chat MODEL`.

A terminal shows the answer while it denoises; `--prompt` prints one answer.
"""

from __future__ import annotations

from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedModel

from ..base.errors import JobError, Problem, guarded, json_line, model_error, shown
from ..base.redact import guard_streams
from ..config.families import FAMILIES
from ..config.model_files import refuse_missing_path
from ..data.chat import ChatFormat
from ..data.turns import Turn
from ..models.diffusion import positions, predictor
from ..models.digest import find_base
from ..models.load import load_model
from ..models.lora import ADAPTER_CONFIG, merged_model
from ..models.masks import is_causal
from ..models.tokenizer import load_tokenizer
from ..run.facts import SamplerSettings, read_facts, token_by_token
from ..run.folder import RunFolder, local_path
from ..run.stages_file import newest_stage
from ..sampling.blockwise import OnStep, Vocabulary, generate
from .arguments import SAMPLER_OPTIONS, chat_options

HOLE = "░"


@dataclass(frozen=True)
class Answer:
    text: str
    steps: int
    seconds: float


class Chatter:
    """A loaded model with the sampler settings it was saved with."""

    def __init__(self, model: PreTrainedModel, chat: ChatFormat, settings: SamplerSettings):
        self.model, self.chat, self.settings = model, chat, settings
        self._vocabulary = Vocabulary(chat.mask_id, chat.end_ids, chat.pad_id)

    def answer(
        self, dialogues: Sequence[Sequence[Turn]], on_step: OnStep | None = None
    ) -> list[Answer]:
        """Answer every dialogue.

        Raises JobError (exit 2) when a prompt leaves no positions for an answer.
        """
        began = time.perf_counter()
        prompts = [self.chat.prompt(turns) for turns in dialogues]
        samples = generate(
            predictor(self.model), prompts, self._vocabulary, self._fitting(prompts), on_step
        )
        seconds = time.perf_counter() - began
        return [
            Answer(self.chat.decode(sample.ids.tolist()), sample.steps, seconds)
            for sample in samples
        ]

    def _fitting(self, prompts: Sequence[NDArray[np.int32]]) -> SamplerSettings:
        room = positions(self.model) - max(prompt.size for prompt in prompts)
        if room < 1:
            raise JobError(
                Problem(
                    "prompt",
                    "a prompt shorter than the model's positions",
                    f"{-room + 1} tokens too many",
                    "Shorten it.",
                )
            )
        return replace(self.settings, max_new_tokens=min(self.settings.max_new_tokens, room))


def find_model(name: str) -> str:
    """Return the model folder or hub id that `name` means.

    A run folder means its fused model, or its last checkpoint; that of a run of stages, the newest
    stage's.
    """
    folder = Path(name).expanduser()
    folder = newest_stage(folder) or folder
    if not (folder / "run.json").exists():
        refuse_missing_path("model", name)
        return local_path(name)
    if (folder / "fused").is_dir():
        return str(folder / "fused")
    if checkpoints := RunFolder(folder).checkpoints():
        return str(checkpoints[-1])
    raise model_error(
        "model",
        "a run folder with a fused model or a checkpoint",
        name,
        "Did the run end before its first save?",
    )


def load_chatter(name: str, overrides: dict[str, int], given_base: str = "") -> Chatter:
    """Load a model, or an adapter on its base, see find_base. Raises JobError (exit 4)."""
    path = Path(find_model(name))
    facts = read_facts(path)
    if (path / ADAPTER_CONFIG).is_file() and (base := facts.base):
        folder = find_base(path, base, given_base)
        tokenizer = load_tokenizer(str(path))
        model = merged_model(
            folder,
            path,
            four_bit=base.four_bit,
            dtype=getattr(torch, base.dtype),
            embedding_rows=len(tokenizer),
        )
        return Chatter(model, ChatFormat(tokenizer), _settings(model, facts.sampler, overrides))
    model = load_model(str(path) if path.exists() else name)
    return Chatter(
        model,
        ChatFormat(
            load_tokenizer(
                str(path) if path.exists() else name, family=FAMILIES[model.config.model_type]
            )
        ),
        _settings(model, facts.sampler, overrides),
    )


def _settings(
    model: PreTrainedModel, saved: SamplerSettings, overrides: dict[str, int]
) -> SamplerSettings:
    """Return the settings that a model was saved with, and those that were asked for.

    A causal model writes token by token. Raises JobError (exit 2) for blocks or steps of one.
    """
    if not is_causal(model.config):
        return replace(saved, **overrides)
    if asked := [name for name in overrides if name != "max_new_tokens"]:
        fix = "It writes from left to right, one token a step."
        raise JobError(
            *(
                Problem(name, f"no {name} with a causal model", str(overrides[name]), fix)
                for name in asked
            )
        )
    return token_by_token(overrides.get("max_new_tokens", saved.max_new_tokens))


def main(argv: Sequence[str]) -> int:
    guard_streams()
    quiet_loading()
    return guarded(lambda: _chat(chat_options(argv)))


def _chat(options: argparse.Namespace) -> int:
    overrides = {name: value for name in SAMPLER_OPTIONS if (value := vars(options)[name])}
    chatter = load_chatter(options.model, overrides, local_path(options.base))
    if options.prompt is None:
        return _talk(chatter)
    (answer,) = chatter.answer([[Turn("user", options.prompt)]])
    if options.json:
        printed = {
            "prompt": options.prompt,
            "text": answer.text,
            "steps": answer.steps,
            "seconds": round(answer.seconds, 3),
        }
        print(json_line(printed))
    else:
        print(shown(answer.text))
    return 0


def _talk(chatter: Chatter) -> int:
    """Hold a dialogue until an empty line or Ctrl-D; /new starts another."""
    console = Console(highlight=False)
    turns: list[Turn] = []
    console.print("[dim]An empty line ends, /new starts over.[/]")
    while True:
        try:
            prompt = console.input("[bold cyan]you[/]  ").strip()
        except (EOFError, KeyboardInterrupt):
            prompt = ""
        if not prompt:
            return 0
        if prompt == "/new":
            turns = []
            continue
        turns.append(Turn("user", prompt))
        text = _answer_live(chatter, turns, console)
        turns.append(Turn("assistant", text))


def _answer_live(chatter: Chatter, turns: Sequence[Turn], console: Console) -> str:
    """Print the answer; a terminal shows it in place while it denoises."""
    if not console.is_terminal:
        (answer,) = chatter.answer([turns])
        console.print(shown(answer.text), markup=False)
        return answer.text
    start = chatter.chat.prompt(turns).size
    with Live(console=console, auto_refresh=False) as live:

        def show(canvas: list[NDArray[np.int32]]) -> None:
            live.update(canvas_line(chatter.chat, canvas[0][start:].tolist()), refresh=True)

        (answer,) = chatter.answer([turns], show)
        live.update(answer_line(answer), refresh=True)
    return answer.text


def canvas_line(chat: ChatFormat, ids: list[int]) -> Text:
    """Render an answer that is still being denoised."""
    text = Text("bot  ", style="bold green")
    for piece in shown(chat.frame(ids, HOLE)):
        text.append(piece, style="magenta" if piece == HOLE else "default")
    return text


def answer_line(answer: Answer) -> Text:
    """Render a complete answer."""
    return Text.assemble(
        ("bot  ", "bold green"), shown(answer.text), (f"   {answer.steps} steps", "dim")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
