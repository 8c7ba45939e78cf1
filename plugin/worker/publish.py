"""End of a complete run: its adapter and its fused model, as folders that work by themselves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from ..assembly.fuse import Card, Fused, Target, adapter_base, fuse_adapter, publish
from ..assembly.rules import diffusion_facts
from ..assembly.training_data import Data, training_data
from ..assembly.verify import TOKENS
from ..base.files import set_aside, whole_folder
from ..config.params import Params
from ..data.mixture import renamed_mixture
from ..models.lora import MaybeAdapted, has_adapter
from ..models.publish import public_name, write_adapter_card, write_model
from ..run.facts import ModelFacts
from ..run.folder import RunFolder
from ..run.outcome import FuseResult
from .load import Training
from .reporter import Reporter


def model_facts(params: Params, data: Data, dtype: torch.dtype) -> ModelFacts:
    """Return `diffusion.json` of a checkpoint or an adapter; an adapter also remembers its base."""
    facts = diffusion_facts(params, data.rules)
    if not params.lora:
        return facts
    base = adapter_base(params.model_name, four_bit=params.load_in_4bit, dtype=dtype)
    return facts.model_copy(update={"base": base})


def finish(
    params: Params,
    folder: RunFolder,
    data: Data,
    training: Training,
    model: MaybeAdapted,
    reporter: Reporter,
    metrics: dict[str, float],
    ranks: int,
) -> FuseResult | None:
    """Save the adapter and publish the fused model. Return what `result` of run.json says of it.

    `model`: the trained model with all its weights.
    """
    if params.lora:
        facts = model_facts(params, data, training.weight_dtype)
        with whole_folder(folder / "adapter", replaces=True) as part:
            write_model(part, model, data.tokenizer, facts)
            write_adapter_card(part, facts)
    if not params.fuse_model:
        if (folder / "fused").is_dir():  # of an earlier end of this run, which is not this one's
            reporter.log(
                f"fuse_model: off; the fused model of before is now {set_aside(folder / 'fused').name}"
            )
        return None
    reporter.phase("fuse")
    facts = diffusion_facts(params, data.rules)
    longest = data.train[int(data.train.lengths.argmax())].ids[:TOKENS]
    target = Target(
        folder=folder / "fused",
        base=params.base,
        tokenizer=data.tokenizer,
        facts=facts.model_copy(update={"fuse_base": params.fuse_base}),
        card=_card(params, data, metrics, ranks),
        trained=model,
        ids=torch.tensor(longest[None].astype("int64")),
        replaces=True,
    )
    fused = _fuse(params, folder, training.weight_dtype, model, target)
    reporter.log(
        f"fused: {fused.path}; reloaded, largest logit difference {fused.differences[fused.chosen]:.2e}"
    )
    return fused.result


def _fuse(
    params: Params, folder: RunFolder, dtype: torch.dtype, model: MaybeAdapted, target: Target
) -> Fused:
    if has_adapter(model):
        four_bit, base = params.load_in_4bit, params.fuse_base
        return fuse_adapter(
            folder / "adapter", target, four_bit=four_bit, fuse_base=base, dtype=dtype
        )
    found = publish(model, target)
    return Fused(
        target.folder,
        {params.fuse_base: found.max_logit_difference},
        params.fuse_base,
        found.template,
    )


def _beginning(params: Params) -> str:
    """Return in words what the weights were before the run, without private paths."""
    if params.model_config_file:
        return f"from scratch ({Path(params.model_config_file).name})"
    if not params.start_from:
        return public_name(params.model_name)
    checkpoint = Path(params.start_from)
    return f"{checkpoint.name} of run {checkpoint.parent.name}, with its optimizer"


def _card(params: Params, data: Data, metrics: dict[str, float], ranks: int) -> Card:
    step = training_data(params).step_size(data.clock, ranks)
    table = {
        "base model": _beginning(params),
        "trained": f"LoRA, rank {params.lora_r}, alpha {params.lora_alpha}"
        if params.lora
        else "all weights",
        "data": renamed_mixture(params.dataset_name, public_name),
        "steps": f"{data.clock.cadence.steps} x {step}",
        "learning rate, schedule": f"{params.learning_rate:g}, {params.learning_rate_schedule}",
        "noise": f"{params.noise_schedule}, t in [{params.t_min:g}, {params.t_max:g}],"
        f" loss norm {data.rules.loss.norm}",
        "end of answer": data.rules.answers.fill.policy,
        "sampler": json.dumps(asdict(diffusion_facts(params, data.rules).sampler)),
    }
    return Card(params.adaptor_name, table, metrics)
