"""End of a complete run: its adapter and its fused model, as folders that work by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..assembly.data import Data
from ..assembly.fuse import Card, Fused, Target, adapter_base, fuse_adapter, publish
from ..assembly.rules import diffusion_facts
from ..assembly.training_data import training_data
from ..assembly.verify import TOKENS
from ..base.files import set_aside, whole_folder
from ..config.methods import METHODS
from ..config.params import Params
from ..data.mixture import renamed_mixture
from ..models.lora import MaybeAdapted, has_adapter, restore_adapter
from ..models.publish import public_name, write_adapter_card, write_model
from ..run.facts import ModelFacts
from ..run.folder import RunFolder
from ..run.outcome import FuseResult, PublishedWeights
from ..run.state import read_state
from .checkpoints import best_checkpoints, mean_weights
from .load import Training
from .rank import Rank
from .reporter import Reporter


def model_facts(params: Params, data: Data, dtype: torch.dtype) -> ModelFacts:
    """Return `diffusion.json` of a checkpoint or an adapter; an adapter also remembers its base."""
    facts = diffusion_facts(params, data.rules)
    if not params.lora:
        return facts
    base = adapter_base(params.model_name, four_bit=params.load_in_4bit, dtype=dtype)
    return facts.model_copy(update={"base": base})


@dataclass(frozen=True)
class FinalWeights:
    """Model to be published, with all its weights, and the evaluation of these."""

    model: MaybeAdapted | None  # None but on rank 0
    metrics: dict[str, float]
    record: PublishedWeights | None  # None for the last weights


def final_weights(
    rank: Rank,
    training: Training,
    last: dict[str, float],
    measure: Callable[[], dict[str, float]],
) -> FinalWeights:
    """Return the weights that `publish` names. Collective.

    `last`: the evaluation of the last weights; `measure` evaluates the weights as they stand. The
    mean is taken in float32 and kept in the dtype of the run's weights.
    """
    params, strategy = rank.params, training.strategy
    model = strategy.full_model()
    if params.publish == "last" or not (params.fuse_model or params.lora):
        return FinalWeights(model, last, None)
    number = params.keep_best if params.publish == "average" else 1
    chosen = best_checkpoints(rank.folder, number) if rank.first else []
    if model is not None and rank.first:
        _take_weights(model, chosen)
    if params.publish == "average":
        strategy.spread(model)
        metrics = measure()
    else:
        metrics = read_state(chosen[0]).last_eval if chosen else {}
    if not rank.first:
        return FinalWeights(None, metrics, None)
    record = PublishedWeights(
        weights=params.publish,
        checkpoints=[str(path) for path in chosen],
        eval_loss=metrics["eval/loss"],
        eval_loss_last=last["eval/loss"],
    )
    rank.reporter.log(
        f"publish: {_words(record)}, evaluation loss {record.eval_loss:.4f};"
        f" the last weights have {record.eval_loss_last:.4f}"
    )
    return FinalWeights(model, metrics, record)


def _take_weights(model: MaybeAdapted, checkpoints: Sequence[Path]) -> None:
    if has_adapter(model):
        restore_adapter(model, checkpoints[0])
        return
    mean = mean_weights(checkpoints)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(mean[name])


def _words(record: PublishedWeights) -> str:
    names = ", ".join(Path(path).name for path in record.checkpoints)
    return f"weights of {names}" if record.weights == "best" else f"mean weights of {names}"


def finish(
    params: Params,
    folder: RunFolder,
    data: Data,
    training: Training,
    final: FinalWeights,
    reporter: Reporter,
    ranks: int,
) -> FuseResult | None:
    """Save the adapter and publish the fused model. Return what `result` of run.json says of it."""
    model = final.model
    assert model is not None
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
        card=_card(params, data, final, ranks),
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


def _noise(params: Params) -> str:
    if METHODS[params.training_method].causal:
        return "none: next-token prediction"
    if params.objective == "mlm":
        return f"masked language modelling, mask rate {params.mask_rate:g}, {params.mlm_replace}"
    return f"{params.noise_schedule}, t in [{params.t_min:g}, {params.t_max:g}]"


def _card(params: Params, data: Data, final: FinalWeights, ranks: int) -> Card:
    step = training_data(params).step_size(data.clock, ranks)
    table = {
        "base model": _beginning(params),
        **({"tiled from": public_name(params.init_from)} if params.init_from else {}),
        "trained": f"LoRA, rank {params.lora_r}, alpha {params.lora_alpha}"
        if params.lora
        else "all weights",
        "data": renamed_mixture(params.dataset_name, public_name),
        "steps": f"{data.clock.cadence.steps} x {step}",
        "learning rate, schedule": f"{params.learning_rate:g}, {params.learning_rate_schedule}",
        "noise": f"{_noise(params)}, loss norm {data.rules.loss.norm}",
        "end of answer": data.rules.answers.fill.policy,
        "sampler": json.dumps(asdict(diffusion_facts(params, data.rules).sampler)),
    }
    if final.record:
        table["published"] = _words(final.record)
    return Card(params.adaptor_name, table, final.metrics)
