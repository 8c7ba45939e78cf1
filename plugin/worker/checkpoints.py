"""Checkpoints: everything that a run needs to resume, written aside and renamed when complete.

`checkpoint-<step>/` holds a complete model folder (it loads and chats as it is; for LoRA an
adapter's), the optimizer's state, a stream's buffer, `state.json` and, written last, the digests of
all these files. All tensors are safetensors, nothing is pickled. No generator state is stored: data
order, noise and dropout are functions of (seed, pass, step, rank).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from ..base.digests import DIGESTS, write_digests
from ..base.files import remove_whole, whole_folder
from ..models.load import load_model
from ..models.lora import MaybeAdapted
from ..models.publish import write_model
from ..run.facts import ModelFacts
from ..run.folder import RunFolder, to_json
from ..run.state import OPTIMIZER, STATE, CheckpointState, read_state
from ..training.lr_schedule import Schedule
from ..training.optimizer import restore_optimizer


@dataclass(frozen=True)
class Contents:
    """Content of a checkpoint. Tensors are full, whatever the ranks hold of them."""

    model: MaybeAdapted
    tokenizer: PreTrainedTokenizerBase
    facts: ModelFacts
    optimizer: Mapping[str, torch.Tensor]
    streams: Sequence[bytes]  # by rank, StreamState.as_bytes
    base: str = ""  # the folder or hub id that the model was made of


def save_checkpoint(
    folder: RunFolder, state: CheckpointState, contents: Contents, keep: int, keep_best: int = 1
) -> Path:
    """Write checkpoint-<step>; keep the last `keep` and the best `keep_best`.

    A kill at any moment leaves earlier checkpoints complete.
    """
    final = folder / f"checkpoint-{state.step}"
    # A run resumed at a step whose evaluation was due saves it again, evaluated.
    with whole_folder(final, replaces=True) as part:
        write_model(part, contents.model, contents.tokenizer, contents.facts, base=contents.base)
        save_file(dict(contents.optimizer), part / OPTIMIZER)
        for rank, stream in enumerate(contents.streams):
            (part / f"stream-{rank}.safetensors").write_bytes(stream)
        (part / STATE).write_text(to_json(state.content()) + "\n", encoding="utf-8")
        write_digests(part)
    saved = folder.checkpoints()
    best = best_checkpoints(folder, keep_best)
    for old in saved[:-keep]:
        if old not in best and (old / DIGESTS).is_file():  # the mark of ours
            remove_whole(old)
    return final


def best_checkpoints(folder: RunFolder, number: int) -> list[Path]:
    """Return the `number` checkpoints with the lowest evaluation loss, the lowest first.

    Only checkpoints that were evaluated at their own step count; of equals, the earlier.
    """
    known: dict[Path, float] = {}
    for path in folder.checkpoints():
        try:
            loss = read_state(path).eval_loss
        except (OSError, ValueError):  # broken from outside: a run does not end for it
            continue
        if loss is not None:
            known[path] = loss
    return sorted(known, key=lambda path: known[path])[:number]


def mean_weights(checkpoints: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of full models' weights by name, in float32. Raises JobError (exit 4)."""
    sums: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        for name, weight in load_model(str(checkpoint)).named_parameters():
            found = weight.detach()
            sums[name] = sums[name] + found if name in sums else found
    return {name: total / len(checkpoints) for name, total in sums.items()}


def restore_training(
    checkpoint: Path, optimizer: torch.optim.Optimizer, schedule: Schedule, step: int
) -> None:
    """Restore optimizer and learning rate as they were after `step`."""
    restore_optimizer(optimizer, load_file(checkpoint / OPTIMIZER))
    schedule.move_to(step)
