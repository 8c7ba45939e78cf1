"""Training in one process, from parameters to answers, without the worker's files and events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.tiny import cpu, meters

from plugin.assembly.clock import make_clock, make_run_schedule
from plugin.assembly.corpus import Prepared, prepare_corpus
from plugin.assembly.model import make_model
from plugin.assembly.rules import step_rules
from plugin.config.params import Params
from plugin.config.sampler import SamplerSettings
from plugin.data.steps import step_slots
from plugin.models.diffusion import DiffusionModel, Predictor
from plugin.sampling.generate import generate
from plugin.sampling.request import Request, Vocabulary
from plugin.training.loop import Hooks, Progress, Requests, Trainer, Verdict, train
from plugin.training.optimizer import make_optimizer
from plugin.training.step import build_step

Pairs = Sequence[tuple[str, str]]
BLOCK = 16


@dataclass(frozen=True)
class Result:
    model: torch.nn.Module
    prepared: Prepared
    losses: list[float]

    def answers(self) -> list[np.ndarray]:
        """Return the ids with which the model answers each training prompt."""
        documents, chat = self.prepared.train, self.prepared.chat
        prompts = [
            documents[index].ids[: documents[index].prompt] for index in range(len(documents))
        ]
        settings = SamplerSettings(max_new_tokens=2 * BLOCK, block_length=BLOCK, steps=BLOCK)
        words = Vocabulary(chat.mask_id, chat.end_ids, chat.pad_id)
        return [
            one.ids
            for one in generate(
                Predictor(self.model.eval()), [Request(ids=one) for one in prompts], words, settings
            )
        ]


def run(folder: Path, method: str, base: Path, pairs: Pairs, **values: Any) -> Result:
    """Train the base on `pairs`, with the parameters of a user's job."""
    rows = folder / "pairs.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": ask, "response": reply}) + "\n" for ask, reply in pairs)
    )
    fixed = {
        "training_method": method,
        "model_name": str(base),
        "dataset_name": str(rows),
        "eval_strategy": "no",
        "max_length": 64,
        "eos_block_length": BLOCK,
        "batch_size": 8,
        "perbatch_cutoff": False,
        "warmup_ratio": 0.05,
        "lora_dropout": 0.0,
        "t_min": 0.1,
        "dtype": "float32",
    }
    params = Params.model_validate({**fixed, **values})
    prepared = prepare_corpus(params, lambda line: None)
    model = make_model(params, prepared.tokenizer, torch.float32)
    module = DiffusionModel(model, prepared.chat.pad_id)
    accelerator = cpu()
    rate, decay = params.learning_rate, params.weight_decay
    adam = make_optimizer(
        module, kind=params.optim, learning_rate=rate, weight_decay=decay, seed=params.seed
    )
    module, optimizer = accelerator.prepare(module, adam)
    clock = make_clock(params, len(prepared.train), 0, 1)
    steps = clock.cadence.steps
    scheduler = make_run_schedule(params, optimizer, steps, lambda line: None)
    rules, losses = step_rules(params, prepared.chat), []

    def make_step(step: int) -> Any:
        slots = step_slots(len(prepared.train), clock.step_size, step, params.seed, clock.total)
        return build_step(slots, prepared.train, rules, batch_size=params.batch_size)

    hooks = Hooks(
        requests=Requests,
        log=lambda step, metrics: None,
        tick=lambda step, loss, seconds: losses.append(loss),
        evaluate=lambda step: Verdict(),
        save=lambda step: None,
        sample=lambda step: None,
    )
    trainer = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=optimizer,
        scheduler=scheduler,
        max_grad_norm=params.max_grad_norm,
        seed=params.seed,
    )
    train(trainer, make_step, clock.cadence, hooks, meters(accelerator), Progress())
    return Result(model, prepared, losses)
