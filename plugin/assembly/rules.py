"""Rules of a step: noise, loss weights and the handling of answers, as the parameters say."""

from __future__ import annotations

from collections.abc import Callable

from ..config.families import DEFAULT_NORM
from ..config.params import Params
from ..data.chat import ChatFormat
from ..objectives.dream import by_context, parse_loss_weight_type
from ..objectives.mdlm import Weigh, by_time
from ..objectives.noise import Noise
from ..run.facts import ModelFacts, SamplerSettings
from ..training.step import StepRules

# Per method, the weight of a masked token.
WEIGH: dict[str, Callable[[Params], Weigh]] = {
    "bert": lambda params: by_time(params.noise_schedule),
    "llada": lambda params: by_time(params.noise_schedule),
    "dream": lambda params: by_context(
        parse_loss_weight_type(params.loss_weight_type), params.noise_schedule
    ),
}


def step_rules(params: Params, chat: ChatFormat) -> StepRules:
    answers = params.training_stage == "sft"
    cuts = answers and params.training_method == "dream"
    return StepRules(
        noise=Noise(
            params.seed,
            params.noise_schedule,
            params.t_sampling,
            params.mask_count,
            params.t_min,
            params.t_max,
        ),
        weigh=WEIGH[params.training_method](params),
        norm=DEFAULT_NORM[params.training_method]
        if params.loss_norm == "auto"
        else params.loss_norm,
        mask_id=chat.mask_id,
        end_ids=chat.end_ids,
        fill_id=chat.fill_id,
        start_id=chat.start_id,
        eos_policy=params.eos_policy if answers else "single",
        eos_block=params.eos_block_length,
        max_length=params.max_length,
        perbatch_cutoff=cuts and params.perbatch_cutoff,
        resp_cutoff_ratio=params.resp_cutoff_ratio if cuts else 0.0,
        complementary=params.complementary,
        stochastic_length=0.0 if answers else params.stochastic_length,
        prompt_drop=params.prompt_drop if answers else 0.0,
    )


def sampler_settings(params: Params) -> SamplerSettings:
    """How the result should be sampled, from how it learned to end an answer: a canvas like those
    it was trained on.

    block: block by block. batch: the whole canvas from the start. single: small blocks, because no
    canvas went past an answer.
    """
    lengths = {"block": params.eos_block_length, "batch": 32, "single": 8}
    block = min(lengths[params.eos_policy], params.max_length)
    longest = max(block, min(256, params.max_length // 2) // block * block)
    return SamplerSettings(
        max_new_tokens=longest, block_length=block, steps=block, grow=params.eos_policy != "batch"
    )


def diffusion_facts(params: Params, rules: StepRules) -> ModelFacts:
    """What a model's folder says about its training: method, noise, loss weighting, end-of-answer
    policy, sampler.
    """
    return ModelFacts(
        method=params.training_method,
        noise_schedule=params.noise_schedule,
        time_range=[params.t_min, params.t_max],
        loss_norm=rules.norm,
        loss_weight=params.loss_weight_type if params.training_method == "dream" else "time",
        perbatch_cutoff=rules.perbatch_cutoff,
        resp_cutoff_ratio=rules.resp_cutoff_ratio,
        prompt_drop=rules.prompt_drop,
        eos_policy=rules.eos_policy,
        eos_block_length=params.eos_block_length,
        sampler=sampler_settings(params),
    )
