"""End of a complete run: its adapter and its fused model, as folders that work by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..assembly.choice import Choice
from ..assembly.data import Data
from ..assembly.fuse import Card, Fused, Target, adapter_base, fuse_adapter, publish
from ..assembly.resolve import Published
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


@dataclass(frozen=True, kw_only=True)
class End:
    """End of a complete run, from which the published weights are chosen."""

    step: int
    before: dict[str, float]  # evaluation before the first step; empty where there was none
    last: dict[str, float]  # of the last step's weights; empty where there was none
    measure: Callable[[], dict[str, float]]  # evaluates the weights as they stand


@dataclass(frozen=True, kw_only=True)
class FinalWeights:
    """Model to be published, with all its weights, and the evaluation of these."""

    model: MaybeAdapted | None  # None but on rank 0
    metrics: dict[str, float]
    record: PublishedWeights | None = None  # None where nothing is published
    words: str = ""  # of the choice
    warning: str = ""  # where the run did harm


def final_weights(
    rank: Rank, training: Training, publish: Choice[Published], end: End
) -> FinalWeights:
    """Return the weights that `publish` names. Collective.

    The mean is taken in float32 and kept in the dtype of the run's weights.
    """
    model = training.strategy.full_model()
    kind = publish.value
    if kind == "no":
        return FinalWeights(model=model, metrics=end.last)
    number = {"last": 0, "best": 1, "average": rank.params.held_best}[kind]
    found = best_checkpoints(rank.folder, number) if rank.first else []
    final = rank.folder / f"checkpoint-{end.step}"
    chosen = found or [final]
    if model is not None and rank.first and chosen != [final]:
        _take_weights(model, chosen)
    metrics = end.last
    if kind == "average":
        training.strategy.spread(model)
        metrics = end.measure()
    elif chosen != [final]:
        metrics = read_state(chosen[0]).last_eval
    if not rank.first:
        return FinalWeights(model=None, metrics=metrics)
    record = PublishedWeights(
        weights=kind if found else "last",
        checkpoints=[str(path) for path in chosen],
        eval_loss=metrics.get("eval/loss"),
        eval_loss_last=end.last.get("eval/loss"),
    )
    # A user may have removed the evaluated ones.
    lost = kind != "last" and not found
    words = _words(record, "no evaluated checkpoint is left" if lost else publish.why)
    warning = _warning(record, end.before)
    for line in filter(None, (f"publish: {words}{_losses(record)}", warning)):
        rank.reporter.log(line)
    return FinalWeights(model=model, metrics=metrics, record=record, words=words, warning=warning)


def _take_weights(model: MaybeAdapted, checkpoints: Sequence[Path]) -> None:
    if has_adapter(model):
        restore_adapter(model, checkpoints[0])
        return
    mean = mean_weights(checkpoints)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(mean[name])


def _words(record: PublishedWeights, why: str) -> str:
    names = ", ".join(Path(path).name for path in record.checkpoints)
    if record.weights == "last":
        return f"last weights: {why}"
    return f"{'mean' if record.weights == 'average' else 'best'} weights, of {names}"


def _losses(record: PublishedWeights) -> str:
    if record.eval_loss is None or record.eval_loss_last is None:
        return ""
    last = f"; the last weights have {record.eval_loss_last:.4f}"
    same = record.eval_loss == record.eval_loss_last
    return f"; held-out loss {record.eval_loss:.4f}{'' if same else last}"


def _warning(record: PublishedWeights, before: dict[str, float]) -> str:
    """Return a warning if the model was better before the run; empty otherwise."""
    first = before.get("eval/loss")
    if first is None or record.eval_loss is None or record.eval_loss <= first:
        return ""
    return (
        f"warning: the run made held-out loss worse: {first:.4f} before its first step,"
        f" {record.eval_loss:.4f} as published"
    )


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
    if final.words:
        table["published"] = final.words
    if final.warning:
        table["warning"] = final.warning.removeprefix("warning: ")
    return Card(params.adaptor_name, table, final.metrics)
