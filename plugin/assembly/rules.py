"""Rules of a step, chosen from the parameters: noise, handling of answers, loss."""

from __future__ import annotations

from typing import Any

from ..config.methods import METHODS
from ..config.params import Params
from ..config.sampler import SamplerSettings, block_by_block, token_by_token
from ..data.chat import ChatFormat
from ..objectives import OBJECTIVES
from ..objectives.answers import (
    Answers,
    BlockBorders,
    Cutoffs,
    EndFill,
    LengthSplit,
    PromptDrop,
    Transform,
)
from ..objectives.masked import Loss, evenly
from ..objectives.noise import Noise
from ..run.facts import BlockFacts, ModelFacts
from ..training.step import StepRules


def step_rules(params: Params, chat: ChatFormat) -> StepRules:
    method, objective = METHODS[params.training_method], OBJECTIVES[params.training_method]
    answers, norm = Answers(_transforms(params, chat)), params.loss_norm
    if params.objective == "mlm":
        loss = Loss(weight=evenly, norm="masked" if norm == "auto" else norm)
        return StepRules(noise=_fixed_noise(params, chat), answers=answers, loss=loss)
    return StepRules(
        noise=Noise(
            seed=params.seed,
            mask_id=chat.mask_id,
            schedule=params.noise_schedule,
            t_sampling=params.t_sampling,
            mask_count=params.mask_count,
            t_min=params.t_min,
            t_max=params.t_max,
            complementary=params.complementary,
        ),
        answers=answers,
        loss=Loss(
            weight=objective.weight(params),
            norm=method.norm if norm == "auto" else norm,
            of_sums=objective.loss,
        ),
        noising=objective.noising(params),
    )


def _fixed_noise(params: Params, chat: ChatFormat) -> Noise:
    """Return the noise of masked language modelling: that of the one time whose probability is
    mask_rate.
    """
    return Noise(
        seed=params.seed,
        mask_id=chat.mask_id,
        mask_count=params.mask_count,
        t_min=params.mask_rate,
        t_max=params.mask_rate,
        ordinary=chat.ordinary_ids if params.mlm_replace != "mask" else None,
    )


def _transforms(params: Params, chat: ChatFormat) -> tuple[Transform, ...]:
    """Choose what is done to a step's documents before the noise, in this order."""
    answers = params.training_stage == "sft"
    method = METHODS[params.training_method]
    fill = EndFill(
        policy=_fill_policy(params),
        block=whole(params.block_size) if method.blocks else params.eos_block_length,
        max_length=params.max_length,
        end_ids=chat.end_ids,
        fill_id=chat.fill_id,
    )
    if not answers:
        split = LengthSplit(share=params.stochastic_length, start_id=chat.start_id)
        return (fill, split) if params.stochastic_length else (fill,)
    # A causal answer's own end token follows it. Blocks end on the document's grid, wherever the
    # answer begins: nothing is cut or hidden.
    if method.causal or method.blocks:
        return (fill,)
    cutoffs = _cutoffs(params)
    return (
        *((cutoffs,) if cutoffs.perbatch or cutoffs.ratio else ()),
        fill,
        *((BlockBorders(params.eos_block_length),) if params.eos_policy == "block" else ()),
        *((PromptDrop(params.prompt_drop),) if params.prompt_drop else ()),
    )


def _fill_policy(params: Params) -> str:
    method = METHODS[params.training_method]
    if params.training_stage != "sft" or method.causal:
        return "single"
    return "grid" if method.blocks else params.eos_policy


def whole(size: int | str) -> int:
    """Return a block size that is no longer auto."""
    assert isinstance(size, int), "with_block_size chooses it"
    return size


def _cutoffs(params: Params) -> Cutoffs:
    """Return the cutoffs of answers; none in other stages, and for methods without the option."""
    options = METHODS[params.training_method].options if params.training_stage == "sft" else ()
    return Cutoffs(
        perbatch="perbatch_cutoff" in options and params.perbatch_cutoff,
        ratio=params.resp_cutoff_ratio if "resp_cutoff_ratio" in options else 0.0,
    )


def sampler_settings(params: Params) -> SamplerSettings:
    """Return how the result should be sampled: on a canvas like those it was trained on.

    block: block by block. batch: the full canvas from the start. single: small blocks, because no
    canvas extended past an answer. A causal model writes token by token; one of blocks denoises its
    own, whose clean keys and values never change.
    """
    method, half = METHODS[params.training_method], min(256, params.max_length // 2)
    if method.causal:
        return token_by_token(max(1, half))
    if method.blocks:
        block = whole(params.block_size)
        return block_by_block(max(block, half // block * block), block)
    lengths = {"block": params.eos_block_length, "batch": 32, "single": 8}
    block = min(lengths[params.eos_policy], params.max_length)
    longest = max(block, half // block * block)
    return SamplerSettings(
        max_new_tokens=longest, block_length=block, steps=block, grow=params.eos_policy != "batch"
    )


def _block_facts(params: Params) -> dict[str, Any]:
    """Return what a model's folder records of block diffusion alone."""
    if not METHODS[params.training_method].blocks:
        return {}
    size = whole(params.block_size)
    block = BlockFacts(size=size, clean_context=params.clean_context, shift=params.block_shift)
    return {
        "block": block,
        "block_views": params.block_views,
        "mask_half_life": params.mask_half_life,
        "ar_loss_weight": params.ar_loss_weight,
    }


def diffusion_facts(params: Params, rules: StepRules) -> ModelFacts:
    """Return what a model's folder records: method, noise, loss, answers, sampler."""
    method, cutoffs = METHODS[params.training_method], _cutoffs(params)
    if method.causal:  # no noise
        return ModelFacts(
            method=method.name,
            loss_norm=rules.loss.norm,
            eos_policy=rules.answers.fill.policy,
            sampler=sampler_settings(params),
        )
    mlm = params.objective == "mlm"
    weight = params.loss_weight_type if "loss_weight_type" in method.options else "time"
    return ModelFacts(
        method=method.name,
        objective=params.objective,
        mask_rate=params.mask_rate if mlm else None,
        mlm_replace=params.mlm_replace if mlm else None,
        noise_schedule=None if mlm else params.noise_schedule,
        time_range=None if mlm else [params.t_min, params.t_max],
        loss_norm=rules.loss.norm,
        loss_weight="uniform" if mlm else weight,
        perbatch_cutoff=cutoffs.perbatch,
        resp_cutoff_ratio=cutoffs.ratio,
        prompt_drop=params.prompt_drop
        if params.training_stage == "sft" and "prompt_drop" not in method.ignored
        else 0.0,
        eos_policy=rules.answers.fill.policy,
        eos_block_length=rules.answers.fill.block,
        **_block_facts(params),
        sampler=sampler_settings(params),
    )
