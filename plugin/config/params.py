"""THE parameters: every value a job can set, declared once. The form, the command line and info.md
are rendered from here.

`parse.parse()` is the only door: it coerces what forms and shells send, reports every problem at
once, and behind it nothing checks or defaults again. Names and defaults are Transformer Lab's where
it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .methods import DEFAULT_METHOD, METHODS

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]

LOSS_WEIGHT = r"^(scheduler|uniform|cart\[geo_p:(0*\.\d*[1-9]\d*|0*1(\.0*)?)\])$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number, not a yes or no")
    return value


def _yes_or_no(value: object) -> object:
    """A switch that may also be a path: what forms and files send for yes and no becomes `true` and
    `false`.
    """
    words = {
        "true": "true",
        "yes": "true",
        "on": "true",
        "1": "true",
        "false": "false",
        "no": "false",
        "off": "false",
        "0": "false",
    }
    return words.get(str(value).lower(), value) if isinstance(value, bool | str) else value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
# Every number ends somewhere, so that what is computed of it does too.
MOST_STEPS = 10**9
MOST_DOCUMENTS = 2**14  # of a step, on each device
MOST_TOKENS = 2**20  # of one document
MOST_PROCESSES = 2**10  # of one machine; also threads
# Bounds before the validator, else they are missing from the schema and from what `expected()`
# says.
AutoThreads = (
    Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_PROCESSES), BeforeValidator(_no_bool)]
)
AutoDocuments = (
    Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_DOCUMENTS), BeforeValidator(_no_bool)]
)
AutoTokens = Literal["auto"] | Annotated[int, Field(ge=1, le=10**8), BeforeValidator(_no_bool)]
AutoPort = Literal["auto"] | Annotated[int, Field(ge=1, le=65535), BeforeValidator(_no_bool)]


def _field(
    default: Any, title: str, help: str, *, form: Mapping[str, float] | bool = False, **bounds: Any
) -> Any:
    """A parameter.

    `form` puts it on the GUI form, with the form's own tighter bounds if it is a mapping.
    """
    return Field(
        default,
        title=title,
        description=help,
        json_schema_extra={"form": dict(form) if isinstance(form, Mapping) else form},
        **bounds,
    )


class Params(BaseModel):
    """One job's parameters, frozen.

    Field order is the order of the form and of the table in info.md.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    # --- where it runs
    train_device: Literal["auto", "cuda", "cpu", "tpu"] = _field(
        "auto", "Device", "auto takes the GPUs if there are any, else the CPU.", form=True
    )
    gpu_ids: str = _field(
        "auto",
        "GPU ids",
        "auto for all visible GPUs, or positions among them: 0,2.",
        form=True,
        pattern=r"^(auto|[0-9]{1,4}(\s*,\s*[0-9]{1,4}){0,63})$",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = _field(
        "auto",
        "Compute dtype",
        "auto is bfloat16 on a GPU that does it well, else float32. What is chosen is what runs.",
        form=True,
    )

    # --- what is trained
    training_method: MethodName = _field(
        DEFAULT_METHOD,
        "Method",
        " ".join(f"{method.name}: {method.summary}." for method in METHODS.values()),
        form=True,
    )
    training_stage: Literal["sft", "pretrain"] = _field(
        "sft",
        "Stage",
        "sft trains on answers; pretrain on whole texts, cut into pieces of max_length.",
        form=True,
    )
    model_name: str = _field("", "Model", "Folder or hub id of the base model (safetensors only).")
    model_config_file: str = _field(
        "",
        "Model configuration",
        "A config.json to train from scratch instead of model_name.",
        alias="model_config",
    )
    tokenizer_name: str = _field(
        "",
        "Tokenizer",
        "Folder or hub id; empty takes the model's, or trains one on the data when training from scratch.",
    )

    # --- data
    dataset_name: str = _field(
        "",
        "Dataset",
        "File, folder or hub id; join several with | or +, limit with [train:5_000,test:100,name:config].",
    )
    text_field: str = _field("text", "Text column", "The column that holds plain text.")
    text_rows: Literal["line", "paragraph", "file"] = _field(
        "paragraph",
        "Rows of a .txt",
        "What one row of a .txt file is; paragraphs are parted by blank lines.",
    )
    instruction_template: str = _field(
        "", "Instruction template", "Jinja over the columns: the user's turn."
    )
    input_template: str = _field(
        "", "Input template", "Jinja over the columns: added below the instruction."
    )
    output_template: str = _field("", "Output template", "Jinja over the columns: the answer.")
    max_length: Int = _field(
        1024,
        "Maximum length",
        "Tokens of one document, prompt and answer together.",
        form=True,
        ge=1,
        le=MOST_TOKENS,
    )
    truncation: Literal["right", "filter"] = _field(
        "right",
        "Too long",
        "right keeps the first max_length tokens; filter drops the document.",
        form=True,
    )
    mask_prompt_loss: bool = _field(
        True,
        "Loss on answers only",
        "On: only answers are masked and learned. Off: the prompt too.",
        form=True,
    )
    train_turns: Literal["last", "all", "random_prefix"] = _field(
        "last",
        "Turns trained",
        "last answer, all answers, or a randomly cut dialogue's last answer.",
    )
    eos_policy: Literal["single", "block", "batch"] = _field(
        "block",
        "End of answer",
        "single: one end token; block: more, up to a multiple of eos_block_length, and half of the long answers end at a block "
        "border, later tokens weighing more to make up for it; batch: up to the longest of the step.",
    )
    eos_block_length: Int = _field(
        32, "End block", "Tokens of a block for eos_policy block.", ge=1, le=MOST_TOKENS
    )
    insert_eos: bool = _field(True, "End of text", "pretrain: end every text with the end token.")
    num_proc: AutoThreads = _field("auto", "Tokenizer threads", "auto is min(8, cores).")
    streaming: bool = _field(
        False,
        "Streaming",
        "pretrain: read the data while training; a micro-batch is batch_size x max_length tokens.",
    )

    # --- length and size of the run
    num_train_epochs: Float = _field(
        0, "Epochs", "Passes over the data; above 0 it wins over steps.", form=True, ge=0, le=1e6
    )
    train_steps: Int = _field(
        1000, "Steps", "Optimizer steps, when epochs is 0.", form=True, ge=1, le=MOST_STEPS
    )
    batch_size: Int = _field(
        4, "Batch size", "Documents a device sees at once.", form=True, ge=1, le=MOST_DOCUMENTS
    )
    gradient_accumulation_steps: Int = _field(
        1,
        "Accumulation",
        "A step is batch size x accumulation x devices documents.",
        form=True,
        ge=1,
        le=MOST_DOCUMENTS,
    )
    per_device_eval_batch_size: AutoDocuments = _field(
        "auto", "Evaluation batch size", "auto is batch_size."
    )
    tokens_per_batch: AutoTokens = _field(
        "auto",
        "Tokens a micro-batch",
        "Caps a micro-batch and never changes a step; with streaming, its size.",
    )
    packing: Literal["auto", "on", "off"] = _field(
        "auto", "Packing", "Lay documents end to end instead of padding them."
    )

    # --- optimizer
    learning_rate: Float = _field(
        2e-5, "Learning rate", "Peak learning rate.", form={"minimum": 1e-6}, gt=0, le=1
    )
    learning_rate_schedule: Literal[
        "constant", "linear", "cosine", "constant_with_warmup", "wsd", "one_minus_sqrt"
    ] = _field(
        "cosine",
        "Schedule",
        "How the learning rate moves. wsd is constant, then falls linearly over the last tenth.",
        form=True,
    )
    warmup_ratio: Float = _field(
        0.1,
        "Warm-up share",
        "Share of the steps over which the learning rate rises.",
        form=True,
        ge=0,
        lt=1,
    )
    warmup_steps: Int = _field(
        0, "Warm-up steps", "Above 0 it wins over the share.", ge=0, le=MOST_STEPS
    )
    optim: Literal["adamw", "adamw_8bit"] = _field(
        "adamw", "Optimizer", "adamw, or with 8-bit states."
    )
    weight_decay: Float = _field(
        0.0, "Weight decay", "AdamW's decoupled decay, on matrices only.", ge=0, le=1
    )
    max_grad_norm: Float = _field(
        1.0, "Gradient clip", "Largest gradient norm of a step; 0 turns clipping off.", ge=0, le=1e9
    )

    # --- diffusion
    noise_schedule: Literal["linear", "cosine"] = _field(
        "linear", "Noise schedule", "How the mask probability grows with time.", form=True
    )
    t_sampling: Literal["iid", "stratified"] = _field(
        "stratified",
        "Time sampling",
        "stratified spreads the times of neighbouring documents evenly: less noise in the loss.",
    )
    mask_count: Literal["bernoulli", "exact"] = _field(
        "bernoulli",
        "Mask count",
        "bernoulli draws each token; exact masks a fixed number per document.",
    )
    t_min: Float = _field(
        0.0, "Lowest time", "Times are drawn from [max(t_min, 0.001), t_max).", ge=0, lt=1
    )
    t_max: Float = _field(
        1.0, "Highest time", "Times are drawn from [max(t_min, 0.001), t_max).", gt=0, le=1
    )
    complementary: bool = _field(
        False, "Complementary pairs", "Each document twice, with disjoint masks that cover it."
    )
    stochastic_length: Float = _field(
        0.0, "Stochastic length", "pretrain: share of documents cut at a random length.", ge=0, le=1
    )
    prompt_drop: Float = _field(
        0.0,
        "Prompt drop",
        "Share of documents whose prompt is masked, for guidance (CFG).",
        ge=0,
        le=1,
    )
    loss_norm: Literal["auto", "token", "sequence", "masked", "batch"] = _field(
        "auto",
        "Loss norm",
        "What the loss is divided by; auto: "
        + ", ".join(f"{method.name} {method.norm}" for method in METHODS.values())
        + ".",
    )
    perbatch_cutoff: bool = _field(
        True,
        "Per-batch cutoff (dream)",
        "Cut answers to the length of one drawn from the step.",
        form=True,
    )
    resp_cutoff_ratio: Float = _field(
        0.0,
        "Response cutoff (dream)",
        "Probability of cutting answers further.",
        form=True,
        ge=0,
        le=1,
    )
    loss_weight_type: str = _field(
        "cart[geo_p:0.3]",
        "Loss weight (dream)",
        "cart[geo_p:P], scheduler or uniform.",
        form=True,
        pattern=LOSS_WEIGHT,
    )

    # --- adapters
    lora: bool = _field(
        False, "LoRA", "Train a low-rank adapter instead of all weights.", form=True
    )
    load_in_4bit: bool = _field(
        False, "4-bit base (QLoRA)", "NF4 base weights; needs LoRA.", form=True
    )
    lora_r: Int = _field(
        32,
        "LoRA rank",
        "Rank of the adapter.",
        form={"minimum": 4, "maximum": 64, "multipleOf": 4},
        ge=1,
        le=2**14,
    )
    lora_alpha: Int = _field(
        64,
        "LoRA alpha",
        "Scale of the adapter.",
        form={"minimum": 4, "maximum": 128, "multipleOf": 4},
        ge=1,
        le=10**6,
    )
    lora_dropout: Float = _field(
        0.0,
        "LoRA dropout",
        "Dropout before the adapter; above 0 the loss depends on the layout.",
        form={"minimum": 0, "maximum": 0.9},
        ge=0,
        le=0.9,
    )
    lora_targets: str = _field(
        "auto",
        "LoRA targets",
        "auto (all linear layers but the head) or layer names, comma separated.",
    )
    adaptor_name: str = _field(
        "adaptor",
        "Adapter name",
        "Name of the result. Left at adaptor, a job of a template is named after the template.",
        form=True,
        pattern=NAME_PATTERN,
    )
    fuse_model: bool = _field(
        True, "Fuse", "Save a whole model that transformers loads without this plugin.", form=True
    )
    fuse_base: Literal["trained", "original"] = _field(
        "trained",
        "Fuse onto",
        "trained: the 4-bit weights trained on, dequantised; original: the unquantised base.",
    )

    # --- speed and memory
    recompute: Literal["auto", "none", "selective", "full"] = _field(
        "auto", "Recompute", "Recompute activations to save memory; auto: as little as fits."
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "varlen"] = _field(
        "auto", "Attention", "Attention kernel."
    )
    compile: Literal["auto", "on", "off"] = _field(
        "auto", "Compile", "torch.compile of each layer; auto is on for GPUs."
    )
    parallel: Literal["auto", "ddp", "fsdp2", "zero2", "zero3"] = _field(
        "auto",
        "Parallel",
        "ddp: a whole copy on each device. zero2 cuts up gradients and states, zero3 (fsdp2) weights too; auto: ddp if it fits.",
    )
    num_processes: AutoThreads = _field(
        "auto", "Processes", "On each machine; auto is one a GPU, or one on a CPU."
    )
    num_machines: Int = _field(
        1, "Machines", "Machines that train together, with as many processes each.", ge=1, le=4096
    )
    machine_rank: Int = _field(0, "Machine rank", "This machine's number, from 0.", ge=0, le=4095)
    main_process_ip: str = _field(
        "127.0.0.1", "Main address", "Machine 0's address, as the others reach it."
    )
    main_process_port: AutoPort = _field(
        "auto", "Main port", "Port of machine 0; auto picks a free one, on one machine."
    )

    # --- logs, evaluation, checkpoints
    logging_steps: Int = _field(
        10, "Log every", "Steps between metrics.", form=True, ge=1, le=MOST_STEPS
    )
    eval_strategy: Literal["no", "steps", "epoch"] = _field(
        "steps", "Evaluate", "no, every eval_steps, or every pass.", form=True
    )
    eval_share: Float = _field(
        0.1,
        "Evaluation share",
        "Share of the rows held out where the data has no eval split; streaming holds out at most 0.01.",
        ge=0,
        le=0.2,
    )
    drop_eval_prompts: bool = _field(
        False,
        "Drop evaluation prompts",
        "Leave out training rows whose prompt, with any answer, is in the data's own eval split.",
    )
    eval_steps: Float = _field(
        0.25, "Evaluate every", "Steps; below 1 a share of the run.", gt=0, le=MOST_STEPS
    )
    eval_on_start: bool = _field(True, "Evaluate first", "Evaluate before the first step too.")
    save_steps: Float = _field(
        0.25, "Save every", "Steps; below 1 a share of the run.", gt=0, le=MOST_STEPS
    )
    save_total_limit: Int = _field(2, "Checkpoints kept", "Older ones are removed.", ge=1, le=10**6)
    resume: Annotated[str, BeforeValidator(_yes_or_no)] = _field(
        "false",
        "Resume",
        "false, true for run_dir's last checkpoint, or a run folder or checkpoint to go on from.",
    )
    log_to_wandb: bool = _field(
        False,
        "Weights & Biases",
        "Also log there; needs a key in the environment, or WANDB_MODE=offline.",
        form=True,
    )
    wandb_project: str = _field(
        "", "W&B project", "Empty takes the host's setting, or WANDB_PROJECT."
    )
    seed: Int = _field(
        42, "Seed", "Seeds data order, noise and new weights.", form=True, ge=0, lt=2**63
    )
    run_dir: str = _field("", "Run folder", "Empty is runs/<date>-<name>.")
    hang_timeout_s: Int = _field(
        1800,
        "Hang timeout (s)",
        "Silence that ends a run, with a stack dump. Loading, compiling, saving are silent.",
        ge=10,
        le=10**7,
    )

    def as_json(self) -> dict[str, Any]:
        """Every parameter under its public name, as run.json holds it."""
        return self.model_dump(by_alias=True)

    def differences(self, other: Params) -> dict[str, Any]:
        """Return this job's parameters, by public name, that differ from those of `other`."""
        before = other.as_json()
        return {name: value for name, value in self.as_json().items() if value != before[name]}


def schema() -> dict[str, dict[str, Any]]:
    """JSON Schema of each parameter by public name: type or alternatives, bounds, default, title,
    description, form.
    """
    return Params.model_json_schema(by_alias=True)["properties"]


# Names that other trainers' commands use; each maps onto one of ours.
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
}
REPORT_TO = {"wandb": True, "all": True, "none": False, "tensorboard": False}

# The groups of the help, each by its first parameter.
GROUPS = {
    "train_device": "where it runs",
    "training_method": "what is trained",
    "dataset_name": "data",
    "num_train_epochs": "length and size of the run",
    "learning_rate": "optimizer",
    "noise_schedule": "diffusion",
    "lora": "adapters",
    "recompute": "speed and memory",
    "logging_steps": "logs, evaluation, checkpoints",
}

# Values of `parallel` that cut the model up.
SHARDED = ("fsdp2", "zero2", "zero3")

# What is declared for a later release: the values that work today. Everything else is refused by
# name, never ignored.
BUILT: dict[str, tuple[object, ...]] = {
    "train_device": ("auto", "cuda", "cpu"),
}

# Options that do something only beside another one that is on; the same line otherwise.
NEEDS = {
    "lora_r": "lora",
    "lora_alpha": "lora",
    "lora_dropout": "lora",
    "lora_targets": "lora",
    "fuse_base": "load_in_4bit",
    "wandb_project": "log_to_wandb",
}
