"""Rules of a stage of training: its beginning, its context, its token clock, its schedule, and its result."""

from __future__ import annotations

from collections.abc import Callable, Collection

from .params import Params
from .wording import quoted

Require = Callable[..., None]
# Parameters of full texts, which another stage refuses or has no use for.
OF_PRETRAIN = (
    "streaming",
    "train_tokens",
    "batch_warmup_tokens",
    "objective",
    "stochastic_length",
    "block_schedule",
)


def check_stage(params: Params, typed: Collection[str], require: Require) -> None:
    """Check parameters of a stage against one another; `require` as in rules.cross_checks."""
    _check_beginning(params, require)
    _check_tokens(params, typed, require)
    require(
        params.rope_theta == 0 or params.rope_theta > 1,
        "rope_theta",
        "0, or a base above 1",
        f"{params.rope_theta:g}",
        "0 keeps the model's.",
    )
    require(
        not (params.rope_theta and params.lora),
        "rope_theta",
        "lora false as well",
        "lora true",
        "An adapter fits its base as it is.",
    )
    if params.publish in ("best", "average"):
        _check_published(params, require)
    require(
        not params.patience or params.eval_strategy != "no",
        "patience",
        "eval_strategy steps or epoch as well",
        f"{params.patience} with eval_strategy no",
        "It counts evaluations.",
    )


def _check_beginning(params: Params, require: Require) -> None:
    """Require one beginning, and refuse what an optimizer's states would not fit."""
    given = {
        "model_name": params.model_name,
        "model_config": params.model_config_file,
        "start_from": params.start_from,
    }
    require(
        len(named := [name for name, value in given.items() if value]) == 1,
        "model_name",
        "one of model_name, model_config and start_from",
        " and ".join(named) or "none",
        "model_name continues a model; model_config (a config.json) starts a new one;"
        " start_from continues a checkpoint with its optimizer.",
    )
    if not params.start_from:
        return
    require(
        not params.lora,
        "lora",
        "a model_name",
        "start_from",
        "The optimizer of a checkpoint holds states of all weights, not of an adapter.",
    )
    require(
        not params.tokenizer_name,
        "tokenizer_name",
        "nothing with start_from",
        quoted(params.tokenizer_name),
        "A checkpoint has its own tokenizer.",
    )


def _check_published(params: Params, require: Require) -> None:
    require(
        params.eval_strategy != "no",
        "publish",
        "eval_strategy steps or epoch as well",
        f"{params.publish} with eval_strategy no",
        "Checkpoints are ranked by their evaluation.",
    )
    require(
        not (params.lora and params.publish == "average"),
        "publish",
        "last or best with lora",
        "average",
        "The mean of two adapters' factors is not the mean of their products.",
    )


def _check_tokens(params: Params, typed: Collection[str], require: Require) -> None:
    for name, value in (
        ("train_tokens", params.train_tokens),
        ("batch_warmup_tokens", params.batch_warmup_tokens),
    ):
        require(
            not value or params.training_stage == "pretrain",
            name,
            "training_stage pretrain as well",
            params.training_stage,
            "Only a step of packs has a fixed number of tokens.",
        )
    require(
        not (params.train_tokens and params.num_train_epochs),
        "train_tokens",
        "either tokens or epochs",
        "both train_tokens and num_train_epochs",
        "Give one of the two.",
    )
    require(
        not {"train_tokens", "train_steps"} <= set(typed),
        "train_tokens",
        "either tokens or steps",
        "both train_tokens and train_steps",
        "Give one of the two.",
    )


def without_effect_on_stage(params: Params) -> dict[str, str]:
    """Return {name: reason} of the parameters that have no effect on this stage."""
    found: dict[str, str] = {}
    if params.train_tokens > 0:
        found["train_steps"] = f"ignored, because train_tokens is {params.train_tokens}."
    if params.training_stage != "pretrain":
        of_packs = "belongs to training_stage pretrain."
        found |= dict.fromkeys(OF_PRETRAIN, of_packs)
    elif params.gradient_accumulation_steps == 1:
        found["batch_warmup_tokens"] = "has no effect with gradient_accumulation_steps 1."
    if not params.learning_rate_schedule.startswith("wsd"):
        found["decay_ratio"] = "has no effect without learning_rate_schedule wsd."
    if params.publish in ("best", "average") and not (params.fuse_model or params.lora):
        found["publish"] = f"{params.publish} has no effect without fuse_model."
    if params.publish == "last" and params.keep_best != params.held_best:
        found["keep_best"] = "has no effect with publish last."
    if params.eos_policy != "block":
        found["eos_block_length"] = "has no effect without eos_policy block."
    if params.warmup_steps > 0:
        found["warmup_ratio"] = f"ignored, because warmup_steps is {params.warmup_steps}."
    return found
