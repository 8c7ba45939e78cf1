"""Rules of a stage of training: its beginning, its context, its token clock, and its result."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ...base.errors import Problem
from ..params import Params
from ..wording import quoted


def makes_packs(params: Params) -> bool:
    """Return whether the steps of a model that can be packed are packs of tokens."""
    padded = params.packing == "off" or params.attn_implementation == "eager"
    return params.training_stage == "pretrain" and not padded


def check_stage(params: Params, typed: Collection[str]) -> Iterator[Problem]:
    """Check parameters of a stage against one another; `typed` as in `cross_checks`."""
    yield from _check_beginning(params)
    yield from _check_tokens(params, typed)
    if params.rope_theta != 0 and params.rope_theta <= 1:
        got = f"{params.rope_theta:g}"
        yield Problem("rope_theta", "0, or a base above 1", got, "0 keeps the model's.")
    if params.rope_theta and params.lora:
        fix = "An adapter fits its base as it is."
        yield Problem("rope_theta", "lora false as well", "lora true", fix)
    yield from _check_published(params)
    if params.patience and params.eval_strategy == "no":
        yield Problem(
            "patience",
            "eval_strategy steps or epoch as well",
            f"{params.patience} with eval_strategy no",
            "It counts evaluations.",
        )


def _check_beginning(params: Params) -> Iterator[Problem]:
    """Require one beginning, and refuse what an optimizer's states would not fit."""
    given = {
        "model_name": params.model_name,
        "model_config": params.model_config_file,
        "start_from": params.start_from,
    }
    if len(named := [name for name, value in given.items() if value]) != 1:
        yield Problem(
            "model_name",
            "one of model_name, model_config and start_from",
            " and ".join(named) or "none",
            "model_name continues a model; model_config (a config.json) starts a new one;"
            " start_from continues a checkpoint with its optimizer.",
        )
    if params.start_from and params.lora:
        fix = "The optimizer of a checkpoint holds states of all weights, not of an adapter."
        yield Problem("lora", "a model_name", "start_from", fix)
    if params.start_from and params.tokenizer_name:
        yield Problem(
            "tokenizer_name",
            "nothing with start_from",
            quoted(params.tokenizer_name),
            "A checkpoint has its own tokenizer.",
        )


def _check_published(params: Params) -> Iterator[Problem]:
    if params.publish in ("best", "average") and params.eval_strategy == "no":
        yield Problem(
            "publish",
            "eval_strategy steps or epoch as well",
            f"{params.publish} with eval_strategy no",
            "Checkpoints are ranked by their evaluation.",
        )
    if params.lora and params.publish == "average":
        fix = "The mean of two adapters' factors is not the mean of their products."
        yield Problem("publish", "last or best with lora", "average", fix)


def _check_tokens(params: Params, typed: Collection[str]) -> Iterator[Problem]:
    for name, value in (
        ("train_tokens", params.train_tokens),
        ("batch_warmup_tokens", params.batch_warmup_tokens),
    ):
        if value:
            yield from check_pretrain(params, name)
    fix = "Give one of the two."
    if params.train_tokens and params.num_train_epochs:
        got = "both train_tokens and num_train_epochs"
        yield Problem("train_tokens", "either tokens or epochs", got, fix)
    if {"train_tokens", "train_steps"} <= set(typed):
        got = "both train_tokens and train_steps"
        yield Problem("train_tokens", "either tokens or steps", got, fix)


def check_pretrain(params: Params, field: str) -> Iterator[Problem]:
    """Require the stage of packs for a field that counts tokens of steps."""
    if params.training_stage != "pretrain":
        fix = "Only a step of packs has a fixed number of tokens."
        yield Problem(field, "training_stage pretrain as well", params.training_stage, fix)
