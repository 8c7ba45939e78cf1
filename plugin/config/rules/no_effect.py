"""Parameters that have no effect in a job, each with its reason."""

from __future__ import annotations

from ..methods import METHODS, methods_with
from ..params import SCHEMA, Params

# Options that have an effect only when another switch is on.
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
# Parameters of full texts, which another stage refuses or has no use for.
OF_PRETRAIN = (
    "streaming",
    "train_tokens",
    "batch_warmup_tokens",
    "objective",
    "stochastic_length",
    "block_schedule",
)


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
    for name, reason in _on_stage(params).items():
        found.setdefault(name, reason)
    if method.blocks and params.mask_half_life:
        found.setdefault("mask_count", "has no effect unless mask_half_life is 0.")
    return found


def _on_stage(params: Params) -> dict[str, str]:
    found: dict[str, str] = {}
    if params.train_tokens > 0:
        found["train_steps"] = f"ignored, because train_tokens is {params.train_tokens}."
    if params.training_stage != "pretrain":
        found |= dict.fromkeys(OF_PRETRAIN, "belongs to training_stage pretrain.")
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
