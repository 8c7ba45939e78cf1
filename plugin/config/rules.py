"""Rules between parameters: aliases, what needs what, cross-checks, what may change on resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from ..base.errors import Problem
from ..base.redact import MARK, redact
from .block_rules import check_blocks, without_effect_on_blocks
from .fields import MOST_DOCUMENTS
from .methods import METHODS, methods_with
from .params import SCHEMA, SHARDED, Params
from .stage_rules import check_stage, without_effect_on_stage
from .wording import quoted

MOST_TEXT = 100_000  # characters of a text

# Names that other trainers' commands use; each stands for one of ours.
ALIASES = {
    "model_name_or_path": "model_name",
    "per_device_train_batch_size": "batch_size",
    "lr_scheduler_type": "learning_rate_schedule",
    "max_steps": "train_steps",
    "lora_rank": "lora_r",
    "adapter_name": "adaptor_name",
    "dataset_args": "dataset_name",
    "output_dir": "run_dir",
    "report_to": "log_to_wandb",
    "gradient_checkpointing": "recompute",
}
# Words of an alias, and the values of ours that they stand for.
ALIAS_VALUES: dict[str, dict[str, object]] = {
    "report_to": {"wandb": True, "all": True, "none": False, "tensorboard": False},
    "gradient_checkpointing": {"true": "full", "false": "none"},
}

# Options that have an effect only when another switch is on; otherwise a note says so.
NEEDS = {
    "lora_r": "lora",
    "lora_alpha": "lora",
    "lora_dropout": "lora",
    "lora_targets": "lora",
    "fuse_base": "load_in_4bit",
    "wandb_project": "log_to_wandb",
}

# Options of masked diffusion, which mlm has at one time and without weights; and options of mlm.
NOT_OF_MLM = ("noise_schedule", "t_sampling", "t_min", "t_max", "complementary", "loss_weight_type")
OF_MLM = ("mask_rate", "mlm_replace")

# Parameters that may differ when a run is resumed: where, how fast and how long it runs, and what it
# reports. Everything else has already shaped the weights of the checkpoint.
WHERE = {
    "train_device",
    "gpu_ids",
    "parallel",
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
}
LAYOUT = {
    "batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "tokens_per_batch",
    "packing",
}
SPEED = {
    "main_process_port",
    "num_proc",
    "recompute",
    "attn_implementation",
    "compile",
    "cuda_graphs",
    "hang_timeout_s",
}
LENGTH = {
    "train_steps",
    "train_tokens",
    "num_train_epochs",
    "eval_steps",
    "eval_on_start",
    "patience",
    "save_steps",
    "save_total_limit",
    "resume",
}
REPORTS = {
    "logging_steps",
    "log_to_wandb",
    "wandb_project",
    "run_dir",
    "adaptor_name",
    "fuse_model",
    "fuse_base",
    "publish",
    "keep_best",
}
MAY_CHANGE = WHERE | LAYOUT | SPEED | LENGTH | REPORTS
# Not of pretraining in packs: these would change the packs.
NOT_OF_PACKS = {
    "batch_size",
    "gradient_accumulation_steps",
    "tokens_per_batch",
    "num_processes",
    "num_machines",
}


def makes_packs(params: Params) -> bool:
    """Return whether the steps of a model that can be packed are packs of tokens."""
    padded = params.packing == "off" or params.attn_implementation == "eager"
    return params.training_stage == "pretrain" and not padded


def cross_checks(params: Params, typed: Collection[str]) -> list[Problem]:
    """List what is wrong between parameters that are each valid by themselves.

    `typed`: the names that a person typed on the command line.
    """
    found: list[Problem] = []

    def require(holds: bool, field: str, expected: str, got: str, fix: str = "") -> None:
        if not holds:
            found.append(Problem(field, expected, got, fix))

    require(
        params.train_device != "tpu",
        "train_device",
        "auto, cuda or cpu",
        "tpu",
        "It is planned, not built yet.",
    )
    require(
        bool(params.dataset_name),
        "dataset_name",
        "a file, folder or hub id",
        "nothing",
        "Give --dataset_name.",
    )
    check_stage(params, typed, require)
    check_blocks(params, require)
    require(
        not params.init_from or bool(params.model_config_file),
        "init_from",
        "model_config as well",
        "model_name" if params.model_name else "no model_config",
        "It gives the weights of a new, larger model.",
    )
    require(
        params.objective == "mdlm" or params.training_stage == "pretrain",
        "objective",
        "training_stage pretrain as well",
        f"{params.objective} with {params.training_stage}",
        "Answers are sampled from every mask ratio, which mdlm learns.",
    )
    method = METHODS[params.training_method]
    require(
        params.objective == "mdlm" or not (method.causal or method.blocks),
        "objective",
        "a method that masks tokens" if method.causal else f"mdlm with {method.name}",
        f"{params.objective} with {method.name}",
    )
    require(
        params.t_min < params.t_max,
        "t_min",
        f"less than t_max ({params.t_max:g})",
        f"{params.t_min:g}",
    )
    cpu_half = params.dtype == "float16" and params.train_device == "cpu"
    require(not cpu_half, "dtype", "float32 on a CPU", "float16", "CPUs do not train in float16.")
    each = params.batch_size * params.gradient_accumulation_steps
    fix = "Or lower gradient_accumulation_steps."
    require(
        each <= MOST_DOCUMENTS,
        "batch_size",
        f"at most {MOST_DOCUMENTS} documents a step on each device",
        str(each),
        fix,
    )
    quantised, scratch = params.load_in_4bit, bool(params.model_config_file)
    require(
        not quantised or params.lora,
        "load_in_4bit",
        "lora true as well",
        "lora false",
        "4-bit weights cannot be trained.",
    )
    require(
        not (quantised and scratch),
        "load_in_4bit",
        "a model_name",
        "model_config",
        "New weights cannot stay frozen.",
    )
    require(
        not (params.lora and scratch),
        "lora",
        "a model_name",
        "model_config",
        "A new model has no base to adapt.",
    )
    shares = params.eval_share > 0 or params.eval_strategy == "no"
    require(shares, "eval_share", "more than 0", "0", "eval_strategy no holds nothing out.")
    picks = (
        params.compile == "on" and params.recompute == "selective"
    )  # single operations, which compiled layers do not have
    require(
        not picks,
        "recompute",
        "auto, none or full with compile on",
        "selective",
        "Or set compile auto.",
    )
    _check_float8(params, require)
    _check_graphs(params, require)
    if params.streaming:
        sft = params.training_stage == "sft"
        require(
            not sft,
            "streaming",
            "training_stage pretrain as well",
            "sft",
            "Answers are read before training starts.",
        )
        require(params.packing != "off", "streaming", "packing auto or on as well", "packing off")
        no_end = "A stream has no last document."
        require(
            params.num_train_epochs == 0,
            "num_train_epochs",
            "train_steps or train_tokens with streaming",
            f"{params.num_train_epochs:g}",
            no_end,
        )
        require(
            params.eval_strategy != "epoch",
            "eval_strategy",
            "no or steps with streaming",
            "epoch",
            no_end,
        )
    for name, value in (("eval_steps", params.eval_steps), ("save_steps", params.save_steps)):
        require(
            value < 1 or math.floor(value) == value,
            name,
            "whole steps, or a share below 1",
            f"{value:g}",
        )
    require(
        not {"num_train_epochs", "train_steps"} <= set(typed),
        "train_steps",
        "either epochs or steps",
        "both num_train_epochs and train_steps",
        "Give one of the two.",
    )
    _check_machines(params, require)
    found += sharding_problems(params)
    for name, value in params.as_json().items():
        if isinstance(value, str):
            require(
                len(value) <= MOST_TEXT,
                name,
                f"at most {MOST_TEXT} characters",
                f"{len(value)} characters",
            )
            require(
                redact(value) == value,
                name,
                "no key in a parameter",
                MARK,
                "Keys are read from the environment alone.",
            )
            require(
                is_writable(value),
                name,
                "text that UTF-8 can encode, without a null character",
                quoted(value),
            )
    return found


def is_writable(text: str) -> bool:
    """Tell whether files and system calls accept a text; JSON and file names may hold others."""
    return "\0" not in text and text.encode("utf-8", "ignore").decode() == text


def _check_float8(params: Params, require: Callable[..., None]) -> None:
    if not params.float8:
        return
    require(
        not params.load_in_4bit,
        "float8",
        "load_in_4bit false",
        "true",
        "A 4-bit base is stored in NF4, whose products are bfloat16.",
    )
    require(
        params.dtype in ("auto", "bfloat16"),
        "float8",
        "dtype auto or bfloat16 as well",
        params.dtype,
        "What is not computed in float8 is computed in bfloat16.",
    )


def _check_graphs(params: Params, require: Callable[..., None]) -> None:
    """Refuse what a captured encoder cannot do, and what no test has tried."""
    if not params.cuda_graphs:
        return
    fixed = {
        "train_device": (params.train_device != "cpu", "auto or cuda", "cpu"),
        # Steps of packs are built once and in order: none can be looked at ahead for their sizes.
        "training_stage": (params.training_stage == "sft", "sft", "pretrain"),
        "packing": (params.packing != "off", "auto or on", "off"),
        "recompute": (params.recompute in ("auto", "none"), "auto or none", params.recompute),
        "lora_dropout": (
            not (params.lora and params.lora_dropout),
            "0",
            f"{params.lora_dropout:g}",
        ),
        "load_in_4bit": (not params.load_in_4bit, "false", "true"),
        "float8": (not params.float8, "false", "true"),
    }
    for name, (fits, wanted, got) in fixed.items():
        require(
            fits,
            "cuda_graphs",
            f"{name} {wanted} as well",
            f"{name} {got}",
            "Or set cuda_graphs false.",
        )


def _check_machines(params: Params, require: Callable[..., None]) -> None:
    machines, rank = params.num_machines, params.machine_rank
    require(
        rank < machines,
        "machine_rank",
        f"less than num_machines ({machines})",
        str(rank),
        "Machines are counted from 0.",
    )
    if machines > 1:
        port, address = params.main_process_port, params.main_process_ip
        require(
            port != "auto",
            "main_process_port",
            "a port that every machine names",
            "auto",
            "Choose one, such as 29500.",
        )
        # Other addresses of 127.0.0.0/8 are allowed: several parents on one machine, for a trial.
        local = address in ("127.0.0.1", "localhost", "::1")
        require(
            not local,
            "main_process_ip",
            "machine 0's address in the network",
            address,
            "127.0.0.1 is each machine itself.",
        )


def sharding_problems(params: Params) -> list[Problem]:
    """List what cannot be sharded.

    8-bit states come in blocks of a full tensor, nobody has proved that all ranks skip the same
    steps when float16 overflows, and no test has tried float8 products of sharded weights.
    """
    found: list[Problem] = []
    if params.parallel in SHARDED:
        fix = "Or set parallel ddp."
        if params.optim != "adamw":
            found.append(
                Problem(
                    "parallel",
                    "optim adamw as well",
                    f"{params.parallel} with {params.optim}",
                    fix,
                )
            )
        if params.dtype == "float16":
            found.append(
                Problem(
                    "parallel",
                    "dtype bfloat16 or float32 as well",
                    f"{params.parallel} with float16",
                    fix,
                )
            )
        if params.float8:
            got = f"{params.parallel} with float8"
            found.append(Problem("parallel", "float8 false as well", got, fix))
    return found


def inapplicable(params: Params) -> list[str]:
    """Return one note for each option that was set and has no effect in this job."""
    values = params.as_json()
    return [
        f"{name}: {reason}"
        for name, reason in without_effect(params).items()
        if values[name] != SCHEMA[name]["default"]
        or name == "train_steps"  # its default is a length
    ]


def without_effect(params: Params) -> dict[str, str]:
    """Return {name: reason} of every parameter that has no effect in this job, set or not.

    Some would be refused if they were set, such as those of another training_stage.
    """
    method, mlm = METHODS[params.training_method], params.objective == "mlm"
    values, found = params.as_json(), dict[str, str]()
    for name in values:
        if (able := methods_with(name)) and method.name not in able:
            belongs = f"belongs to training_method {' or '.join(able)}"
            found[name] = f"{belongs}; it has no effect with {method.name}."
    found |= dict.fromkeys(method.ignored, f"has no effect with {method.name}.")
    found |= {
        name: f"has no effect without {switch}."
        for name, switch in NEEDS.items()
        if not values[switch]
    }
    word = "with" if mlm else "without"
    for name in NOT_OF_MLM if mlm else OF_MLM:
        found.setdefault(name, f"has no effect {word} objective mlm.")
    if params.num_machines == 1:
        found["main_process_port"] = (
            "has no effect on one machine, whose processes meet in a private folder."
        )
    if params.num_train_epochs > 0:
        found["train_steps"] = f"ignored, because num_train_epochs is {params.num_train_epochs:g}."
    for name, reason in (
        without_effect_on_stage(params) | without_effect_on_blocks(params)
    ).items():
        found.setdefault(name, reason)
    return found
