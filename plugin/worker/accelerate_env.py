"""Choices of accelerate's launcher, in the words of `parallel` and `dtype`.

Sharding is ours (training/sharding.py). accelerate's own FSDP or DeepSpeed would shard the model a
second time or, on a CPU, silently become DDP, and transformers would leave the weights of every
rank but one unread. So the launcher's words are read here once, before there is an Accelerator, and
removed from the environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

from ..base.errors import JobError, Problem
from ..config.params import Params
from ..config.rules.checks import sharding_problems

# FSDP 1's sharding_strategy, by name or by number as accelerate counts them; HYBRID_SHARD and
# HYBRID_SHARD_ZERO2 are not offered.
STRATEGIES = {
    "FULL_SHARD": "zero3",
    "SHARD_GRAD_OP": "zero2",
    "NO_SHARD": "ddp",
    "1": "zero3",
    "2": "zero2",
    "3": "ddp",
}
STAGES = {
    "0": "ddp",
    "1": "zero2",
    "2": "zero2",
    "3": "zero3",
}  # DeepSpeed's; there is no stage between ddp and zero2 here
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}
RESHARD = {"true": "zero3", "1": "zero3", "false": "zero2", "0": "zero2"}

# Environment variable -> (its name in accelerate's configuration, values that ask for nothing).
Settings = Mapping[str, tuple[str, tuple[str, ...]]]
OF_FSDP: Settings = {
    "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", ("false",)),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "fsdp_activation_checkpointing (recompute does it)",
        ("false",),
    ),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("fsdp_activation_checkpointing_offload", ("false",)),
    "FSDP_IGNORED_MODULES": ("fsdp_ignored_modules", ("", "none")),
}
OF_DEEPSPEED: Settings = {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("offload_optimizer_device", ("none",)),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("offload_param_device", ("none",)),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("deepspeed_config_file", ("none",)),
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": ("deepspeed_moe_layer_cls_names", ("none",)),
}
OF_ANY: Settings = {
    "ACCELERATE_USE_MEGATRON_LM": ("use_megatron_lm", ("false",)),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("use_parallelism_config", ("false",)),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend (compile does it)", ("no",)),
}
READ_HERE = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_CONFIG_DS_FIELDS")
READ_HERE_BY_PREFIX = ("FSDP_", "ACCELERATE_DEEPSPEED_", "ACCELERATE_GRADIENT_")


def take_launchers_choice(params: Params, environ: MutableMapping[str, str]) -> tuple[Params, str]:
    """Return `params` with the launcher's choice where `parallel` or `dtype` is auto, and a log
    line on it or "". Remove the launcher's words from `environ`.

    Raises JobError (exit 2) that names everything this program cannot do of it, and parameters that
    contradict it.
    """
    refused, taken = list(_not_done(params, environ)), []
    mixed = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed != "no" and PRECISIONS.get(mixed) != params.dtype:
        if params.dtype == "auto" and mixed in PRECISIONS:
            params = params.model_copy(update={"dtype": PRECISIONS[mixed]})
            taken.append(f"mixed_precision {mixed} is dtype {params.dtype} here")
        else:
            refused.append(f"mixed_precision {mixed} with dtype {params.dtype}")
    parallel, said = _choice(environ)
    if said and not parallel:
        refused.append(said)
    if parallel:
        cut = params.model_copy(update={"parallel": parallel})
        if params.parallel == "auto":
            refused += [
                f"{said}, which is {one.got} ({one.expected} is needed)"
                for one in sharding_problems(cut)
            ]
            taken.append(
                f"{said} is parallel {parallel} here; wrapping, loading and saving are this program's own"
            )
            params = cut
        elif {"fsdp2": "zero3"}.get(params.parallel, params.parallel) != parallel:
            refused.append(f"{said}, which is {parallel}, with parallel {params.parallel}")
    if refused:
        expected = "what this program can do of accelerate's configuration"
        fix = "Take it out of that configuration; parallel auto and dtype auto follow the rest."
        raise JobError(Problem("parallel", expected, "; ".join(refused), fix))
    for name in [
        name for name in environ if name in READ_HERE or name.startswith(READ_HERE_BY_PREFIX)
    ]:
        del environ[name]
    return params, f"accelerate: {'; '.join(taken)}" if taken else ""


def _choice(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return (ddp, zero2, zero3, or "" for anything else; the launcher's words), both empty if it
    chose nothing.
    """
    if _is_on(environ, "ACCELERATE_USE_DEEPSPEED"):
        stage = environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return STAGES.get(stage, ""), f"DeepSpeed with zero_stage {stage}"
    if not _is_on(environ, "ACCELERATE_USE_FSDP"):
        return "", ""
    if environ.get("FSDP_VERSION", "1") == "1":
        strategy = environ.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD")
        return STRATEGIES.get(
            strategy.upper(), ""
        ), f"FSDP 1 with fsdp_sharding_strategy {strategy}"
    reshard = environ.get("FSDP_RESHARD_AFTER_FORWARD", "true")
    return RESHARD.get(reshard.lower(), ""), f"FSDP with fsdp_reshard_after_forward {reshard}"


def _not_done(params: Params, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield launcher settings that this program does not support."""
    asked: list[Settings] = [OF_ANY]
    asked += [OF_FSDP] if _is_on(environ, "ACCELERATE_USE_FSDP") else []
    deepspeed = _is_on(environ, "ACCELERATE_USE_DEEPSPEED")
    asked += [OF_DEEPSPEED] if deepspeed else []
    for settings in asked:
        for variable, (name, nothing) in settings.items():
            value = environ.get(variable, nothing[0])
            if value.lower() not in nothing:
                yield f"{name} {value}"
    of_run = {
        "gradient_accumulation_steps": params.gradient_accumulation_steps,
        "gradient_clipping": params.max_grad_norm,
    }
    for name, ours in of_run.items() if deepspeed else ():
        value = environ.get(f"ACCELERATE_{name.upper()}", "auto")
        if value not in ("auto", "none") and _number(value) != ours:
            yield f"{name} {value} with {ours} in run.json"


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "false").lower() == "true"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
