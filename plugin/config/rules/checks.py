"""Checks between parameters that are each valid by themselves."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from ...base.errors import Problem
from ...base.files import is_encodable
from ...base.redact import MARK, redact
from ..fields import MOST_DOCUMENTS
from ..methods import METHODS
from ..params import SHARDED, Params
from ..wording import quoted
from .blocks import check_blocks
from .stage import check_stage

MOST_TEXT = 100_000  # characters of a text


def cross_checks(params: Params, typed: Collection[str]) -> Iterator[Problem]:
    """Find what is wrong between parameters.

    `typed`: the names that a person typed on the command line.
    """
    if params.train_device == "tpu":
        yield Problem("train_device", "auto, cuda or cpu", "tpu", "It is planned, not built yet.")
    if not params.dataset_name:
        yield Problem("dataset_name", "a file, folder or hub id", "nothing", "Give --dataset_name.")
    yield from check_stage(params, typed)
    yield from check_blocks(params)
    if params.init_from and not params.model_config_file:
        got = "model_name" if params.model_name else "no model_config"
        fix = "It gives the weights of a new, larger model."
        yield Problem("init_from", "model_config as well", got, fix)
    yield from _check_objective(params)
    if params.dtype == "float16" and params.train_device == "cpu":
        yield Problem("dtype", "float32 on a CPU", "float16", "CPUs do not train in float16.")
    if (each := params.batch_size * params.gradient_accumulation_steps) > MOST_DOCUMENTS:
        most = f"at most {MOST_DOCUMENTS} documents a step on each device"
        yield Problem("batch_size", most, str(each), "Or lower gradient_accumulation_steps.")
    yield from _check_adapter(params)
    if params.eval_share == 0 and params.eval_strategy != "no":
        yield Problem("eval_share", "more than 0", "0", "eval_strategy no holds nothing out.")
    # Selective recomputation picks single operations, which compiled layers do not have.
    if params.compile == "on" and params.recompute == "selective":
        able = "auto, none or full with compile on"
        yield Problem("recompute", able, "selective", "Or set compile auto.")
    yield from _check_float8(params)
    yield from _check_graphs(params)
    yield from _check_streaming(params)
    for name, value in (("eval_steps", params.eval_steps), ("save_steps", params.save_steps)):
        if value >= 1 and math.floor(value) != value:
            yield Problem(name, "whole steps, or a share below 1", f"{value:g}")
    if {"num_train_epochs", "train_steps"} <= set(typed):
        got = "both num_train_epochs and train_steps"
        yield Problem("train_steps", "either epochs or steps", got, "Give one of the two.")
    yield from _check_machines(params)
    yield from sharding_problems(params)
    for name, value in params.as_json().items():
        if isinstance(value, str):
            yield from _check_text(name, value)


def _check_objective(params: Params) -> Iterator[Problem]:
    method, mdlm = METHODS[params.training_method], params.objective == "mdlm"
    if not mdlm and params.training_stage != "pretrain":
        yield Problem(
            "objective",
            "training_stage pretrain as well",
            f"{params.objective} with {params.training_stage}",
            "Answers are sampled from every mask ratio, which mdlm learns.",
        )
    if not mdlm and (method.causal or method.blocks):
        able = "a method that masks tokens" if method.causal else f"mdlm with {method.name}"
        yield Problem("objective", able, f"{params.objective} with {method.name}")
    if params.t_min >= params.t_max:
        yield Problem("t_min", f"less than t_max ({params.t_max:g})", f"{params.t_min:g}")


def _check_adapter(params: Params) -> Iterator[Problem]:
    quantised, scratch = params.load_in_4bit, bool(params.model_config_file)
    if quantised and not params.lora:
        fix = "4-bit weights cannot be trained."
        yield Problem("load_in_4bit", "lora true as well", "lora false", fix)
    if quantised and scratch:
        fix = "New weights cannot stay frozen."
        yield Problem("load_in_4bit", "a model_name", "model_config", fix)
    if params.lora and scratch:
        yield Problem("lora", "a model_name", "model_config", "A new model has no base to adapt.")


def _check_float8(params: Params) -> Iterator[Problem]:
    if params.float8 and params.load_in_4bit:
        fix = "A 4-bit base is stored in NF4, whose products are bfloat16."
        yield Problem("float8", "load_in_4bit false", "true", fix)
    if params.float8 and params.dtype not in ("auto", "bfloat16"):
        fix = "What is not computed in float8 is computed in bfloat16."
        yield Problem("float8", "dtype auto or bfloat16 as well", params.dtype, fix)


def _check_graphs(params: Params) -> Iterator[Problem]:
    """Refuse what a captured encoder cannot do, and what no test has tried."""
    if not params.cuda_graphs:
        return
    drops = params.lora and params.lora_dropout
    fixed = {
        "train_device": (params.train_device != "cpu", "auto or cuda", "cpu"),
        # Steps of packs are built once and in order: none can be looked at ahead for their sizes.
        "training_stage": (params.training_stage == "sft", "sft", "pretrain"),
        "packing": (params.packing != "off", "auto or on", "off"),
        "recompute": (params.recompute in ("auto", "none"), "auto or none", params.recompute),
        "lora_dropout": (not drops, "0", f"{params.lora_dropout:g}"),
        "load_in_4bit": (not params.load_in_4bit, "false", "true"),
        "float8": (not params.float8, "false", "true"),
    }
    for name, (fits, wanted, got) in fixed.items():
        if not fits:
            fix = "Or set cuda_graphs false."
            yield Problem("cuda_graphs", f"{name} {wanted} as well", f"{name} {got}", fix)


def _check_streaming(params: Params) -> Iterator[Problem]:
    if not params.streaming:
        return
    if params.training_stage == "sft":
        fix = "Answers are read before training starts."
        yield Problem("streaming", "training_stage pretrain as well", "sft", fix)
    if params.packing == "off":
        yield Problem("streaming", "packing auto or on as well", "packing off")
    no_end = "A stream has no last document."
    if params.num_train_epochs != 0:
        able = "train_steps or train_tokens with streaming"
        yield Problem("num_train_epochs", able, f"{params.num_train_epochs:g}", no_end)
    if params.eval_strategy == "epoch":
        yield Problem("eval_strategy", "no or steps with streaming", "epoch", no_end)


def _check_machines(params: Params) -> Iterator[Problem]:
    machines, rank, address = params.num_machines, params.machine_rank, params.main_process_ip
    if rank >= machines:
        less = f"less than num_machines ({machines})"
        yield Problem("machine_rank", less, str(rank), "Machines are counted from 0.")
    if machines == 1:
        return
    if params.main_process_port == "auto":
        port = "a port that every machine names"
        yield Problem("main_process_port", port, "auto", "Choose one, such as 29500.")
    # Other addresses of 127.0.0.0/8 are allowed: several parents on one machine, for a trial.
    if address in ("127.0.0.1", "localhost", "::1"):
        reached = "machine 0's address in the network"
        yield Problem("main_process_ip", reached, address, "127.0.0.1 is each machine itself.")


def sharding_problems(params: Params) -> Iterator[Problem]:
    """Find what cannot be sharded.

    8-bit states come in blocks of a full tensor, nobody has proved that all ranks skip the same
    steps when float16 overflows, and no test has tried float8 products of sharded weights.
    """
    if params.parallel not in SHARDED:
        return
    for fits, wanted, given in (
        (params.optim == "adamw", "optim adamw", params.optim),
        (params.dtype != "float16", "dtype bfloat16 or float32", "float16"),
        (not params.float8, "float8 false", "float8"),
    ):
        if not fits:
            got = f"{params.parallel} with {given}"
            yield Problem("parallel", f"{wanted} as well", got, "Or set parallel ddp.")


def _check_text(name: str, text: str) -> Iterator[Problem]:
    if len(text) > MOST_TEXT:
        yield Problem(name, f"at most {MOST_TEXT} characters", f"{len(text)} characters")
    if redact(text) != text:
        fix = "Keys are read from the environment alone."
        yield Problem(name, "no key in a parameter", MARK, fix)
    if not is_encodable(text):
        able = "text that UTF-8 can encode, without a null character"
        yield Problem(name, able, quoted(text))
