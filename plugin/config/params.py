"""Parameters: every value that a job can set, declared once.

The form, the command line and info.md are rendered from here. `parse.parse()` is the only door: it
coerces what forms and shells send and reports every problem together; behind it nothing checks or
defaults again. Names and defaults are Transformer Lab's where it has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from .fields import (
    LOSS_WEIGHT,
    MOST_DOCUMENTS,
    MOST_RUN_TOKENS,
    MOST_STEPS,
    MOST_TOKENS,
    NAME_PATTERN,
    AutoBlock,
    AutoCheckpoints,
    AutoDocuments,
    AutoPort,
    AutoThreads,
    AutoTokens,
    Float,
    Int,
    parameter,
    yes_or_no,
)
from .methods import DEFAULT_METHOD, METHODS, ON_FORM, summaries

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


class Params(BaseModel):
    """One job's parameters, frozen, in the order of the form and of the table in info.md."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    # --- where it runs
    train_device: Literal["auto", "cuda", "cpu", "tpu"] = parameter(
        "auto", "Device", "auto uses the GPUs if there are any, else the CPU.", form=True
    )
    gpu_ids: str = parameter(
        "auto",
        "GPU ids",
        "auto for all visible GPUs, or positions among them: 0,2.",
        form=True,
        pattern=r"^(auto|[0-9]{1,4}(\s*,\s*[0-9]{1,4}){0,63})$",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = parameter(
        "auto",
        "Compute dtype",
        "auto is bfloat16 on a GPU that does it well, else float32. What is chosen is what runs.",
        form=True,
    )

    # --- what is trained
    training_method: MethodName = parameter(
        DEFAULT_METHOD,
        "Method",
        summaries(METHODS),
        form={"enum": list(ON_FORM), "description": summaries(ON_FORM)},
    )
    training_stage: Literal["sft", "pretrain"] = parameter(
        "sft",
        "Stage",
        "sft trains on answers; pretrain on full texts, cut into pieces of max_length.",
        form=True,
    )
    model_name: str = parameter(
        "", "Model", "Folder or hub id of the base model (safetensors only)."
    )
    model_config_file: str = parameter(
        "",
        "Model configuration",
        "A config.json to train from scratch instead of model_name.",
        alias="model_config",
    )
    start_from: str = parameter(
        "",
        "Start from",
        "A run folder or checkpoint, instead of model_name: its weights and its optimizer; steps, schedule and data begin anew.",
    )
    init_from: str = parameter(
        "",
        "Smaller model",
        "With model_config: folder or hub id of a smaller model of the same family, whose weights the new one repeats.",
    )
    tokenizer_name: str = parameter(
        "",
        "Tokenizer",
        "Folder or hub id; empty takes the model's or init_from's, or trains one on the data when training from scratch.",
    )

    # --- data
    dataset_name: str = parameter(
        "",
        "Dataset",
        "File, folder or hub id; join several with | or +, limit with [train:5_000,test:100,name:config].",
    )
    text_field: str = parameter("text", "Text column", "The column that holds plain text.")
    text_rows: Literal["line", "paragraph", "file"] = parameter(
        "paragraph",
        "Rows of a .txt",
        "One row of a .txt file; blank lines separate paragraphs.",
    )
    instruction_template: str = parameter(
        "", "Instruction template", "Jinja over the columns: the user's turn."
    )
    input_template: str = parameter(
        "", "Input template", "Jinja over the columns: added below the instruction."
    )
    output_template: str = parameter("", "Output template", "Jinja over the columns: the answer.")
    max_length: Int = parameter(
        1024,
        "Maximum length",
        "Tokens of one document, prompt and answer together.",
        form=True,
        ge=1,
        le=MOST_TOKENS,
    )
    rope_theta: Float = parameter(
        0,
        "RoPE theta",
        "Base of the rotary positions, of ModernBERT's global layers; the model then takes texts of max_length. 0 keeps the model's.",
        ge=0,
        le=10**12,
    )
    truncation: Literal["right", "filter"] = parameter(
        "right",
        "Too long",
        "right keeps the first max_length tokens; filter drops the document.",
        form=True,
    )
    mask_prompt_loss: bool = parameter(
        True,
        "Loss on answers only",
        "On: only answers are masked and learned. Off: the prompt too.",
        form=True,
    )
    train_turns: Literal["last", "all", "random_prefix", "first"] = parameter(
        "last",
        "Turns trained",
        "last answer, all answers, a randomly cut dialogue's last answer, or the first round alone, later turns left out.",
    )
    eos_policy: Literal["single", "block", "batch"] = parameter(
        "block",
        "End of answer",
        "single: one end token; block: more, up to a multiple of eos_block_length, and half of the long answers end at a block "
        "border, later tokens weighing more to make up for it; batch: up to the longest of the step.",
    )
    eos_block_length: Int = parameter(
        32, "End block", "Tokens of a block for eos_policy block.", ge=1, le=MOST_TOKENS
    )
    insert_eos: bool = parameter(
        True, "End of text", "pretrain: end every text with the end token."
    )
    num_proc: AutoThreads = parameter("auto", "Tokenizer threads", "auto is min(8, cores).")
    streaming: bool = parameter(
        False,
        "Streaming",
        "pretrain: read the data while training.",
    )

    # --- length and size of the run
    num_train_epochs: Float = parameter(
        0, "Epochs", "Passes over the data; above 0 it wins over steps.", form=True, ge=0, le=1e6
    )
    train_steps: Int = parameter(
        1000, "Steps", "Optimizer steps, when epochs is 0.", form=True, ge=1, le=MOST_STEPS
    )
    train_tokens: Int = parameter(
        0,
        "Tokens",
        "pretrain: tokens of the run, all devices together; above 0 it wins over steps, and the schedule follows tokens.",
        ge=0,
        le=MOST_RUN_TOKENS,
    )
    batch_size: Int = parameter(
        4,
        "Batch size",
        "Documents of a micro-batch on each device; pretrain: batch_size x max_length tokens.",
        form=True,
        ge=1,
        le=MOST_DOCUMENTS,
    )
    gradient_accumulation_steps: Int = parameter(
        1,
        "Accumulation",
        "A step is batch size x accumulation x devices documents.",
        form=True,
        ge=1,
        le=MOST_DOCUMENTS,
    )
    batch_warmup_tokens: Int = parameter(
        0,
        "Batch warm-up (tokens)",
        "pretrain: micro-batches of a step rise from 1 to gradient_accumulation_steps over these tokens, equal steps a size.",
        ge=0,
        le=MOST_RUN_TOKENS,
    )
    per_device_eval_batch_size: AutoDocuments = parameter(
        "auto", "Evaluation batch size", "auto is batch_size."
    )
    tokens_per_batch: AutoTokens = parameter(
        "auto",
        "Tokens a micro-batch",
        "Caps a micro-batch and never changes a step; pretrain: its size.",
    )
    packing: Literal["auto", "on", "off"] = parameter(
        "auto", "Packing", "Lay documents end to end instead of padding them."
    )

    # --- optimizer
    learning_rate: Float = parameter(
        2e-5, "Learning rate", "Peak learning rate.", form={"minimum": 1e-6}, gt=0, le=1
    )
    learning_rate_schedule: Literal[
        "constant",
        "linear",
        "cosine",
        "constant_with_warmup",
        "wsd",
        "wsd_one_minus_sqrt",
        "one_minus_sqrt",
    ] = parameter(
        "cosine",
        "Schedule",
        "Course of the learning rate. wsd is constant, then falls over the last decay_ratio: linearly, or as 1 - sqrt.",
        form=True,
    )
    decay_ratio: Float = parameter(
        0.1, "Decay share", "Share of the run over which wsd falls.", gt=0, le=1
    )
    warmup_ratio: Float = parameter(
        0.1,
        "Warm-up share",
        "Share of the steps over which the learning rate rises.",
        form=True,
        ge=0,
        lt=1,
    )
    warmup_steps: Int = parameter(
        0, "Warm-up steps", "Above 0 it wins over the share.", ge=0, le=MOST_STEPS
    )
    optim: Literal["adamw", "adamw_8bit"] = parameter(
        "adamw", "Optimizer", "adamw, or with 8-bit states."
    )
    weight_decay: Float = parameter(
        0.0, "Weight decay", "AdamW's decoupled decay, on matrices only.", ge=0, le=1
    )
    max_grad_norm: Float = parameter(
        1.0, "Gradient clip", "Largest gradient norm of a step; 0 turns clipping off.", ge=0, le=1e9
    )

    # --- diffusion
    noise_schedule: Literal["linear", "cosine"] = parameter(
        "linear", "Noise schedule", "How the mask probability grows with time.", form=True
    )
    t_sampling: Literal["iid", "stratified"] = parameter(
        "stratified",
        "Time sampling",
        "stratified spreads the times of neighbouring documents evenly: less noise in the loss.",
    )
    mask_count: Literal["bernoulli", "exact"] = parameter(
        "bernoulli",
        "Mask count",
        "bernoulli draws each token; exact masks a fixed number per document.",
    )
    t_min: Float = parameter(
        0.0, "Lowest time", "Times are drawn from [max(t_min, 0.001), t_max).", ge=0, lt=1
    )
    t_max: Float = parameter(
        1.0, "Highest time", "Times are drawn from [max(t_min, 0.001), t_max).", gt=0, le=1
    )
    complementary: bool = parameter(
        False, "Complementary pairs", "Each document twice, with disjoint masks that cover it."
    )
    objective: Literal["mdlm", "mlm"] = parameter(
        "mdlm",
        "Objective",
        "pretrain: mdlm learns at every mask ratio, weighed by time; mlm at mask_rate alone, each chosen token weighing 1.",
    )
    mask_rate: Float = parameter(
        0.3, "Mask rate", "mlm: probability that a token is chosen to be predicted.", ge=1e-3, le=1
    )
    mlm_replace: Literal["mask", "bert"] = parameter(
        "mask",
        "Replacement",
        "mlm: a chosen token becomes the mask; bert: in 80 % the mask, in 10 % a random token, in 10 % it stays.",
    )
    stochastic_length: Float = parameter(
        0.0, "Stochastic length", "pretrain: share of documents cut at a random length.", ge=0, le=1
    )
    prompt_drop: Float = parameter(
        0.0,
        "Prompt drop",
        "Share of documents whose prompt is masked, for guidance (CFG).",
        ge=0,
        le=1,
    )
    loss_norm: Literal["auto", "token", "sequence", "masked", "batch"] = parameter(
        "auto",
        "Loss norm",
        "Divisor of the loss; auto: "
        + ", ".join(f"{method.name} {method.norm}" for method in METHODS.values())
        + "; masked with objective mlm.",
    )
    certainty_weight: Float = parameter(
        0.0,
        "Certainty weight",
        "Weight of the entropy of right predictions (CAP), for few steps of sampling; 2 is usual.",
        ge=0,
        le=100,
    )
    perbatch_cutoff: bool = parameter(
        True,
        "Per-batch cutoff (dream)",
        "Cut answers to the length of one drawn from the step.",
        form=True,
    )
    resp_cutoff_ratio: Float = parameter(
        0.0,
        "Response cutoff (dream)",
        "Probability of cutting answers further.",
        form=True,
        ge=0,
        le=1,
    )
    loss_weight_type: str = parameter(
        "cart[geo_p:0.3]",
        "Loss weight (dream)",
        "cart[geo_p:P], scheduler or uniform.",
        form=True,
        pattern=LOSS_WEIGHT,
    )

    block_size: AutoBlock = parameter(
        "auto",
        "Block size (block)",
        "Tokens of a block; auto is the model's own, else 16 up to 2B parameters and 32 above.",
        form={"type": "string", "pattern": r"^(auto|[0-9]{1,7})$"},
    )
    block_views: Int = parameter(
        1,
        "Noisy copies (block)",
        "1, or 2 with disjoint masks that cover the answer, each token weighing 1: half as noisy a loss, a third more to compute.",
        form=True,
        ge=1,
        le=2,
    )
    clean_context: Literal["block", "causal"] = parameter(
        "block",
        "Clean context (block)",
        "What a clean token sees of its own block: block all of it, causal what is before it.",
        form=True,
    )
    block_shift: bool = parameter(
        False,
        "Shift (block)",
        "State i - 1 predicts token i, as in Fast-dLLM v2; off is better for a new conversion.",
    )
    block_schedule: str = parameter(
        "",
        "Block schedule (block)",
        "pretrain: block sizes by the tokens of the run, [[tokens, size], ...], the first from 0 and the last block_size.",
    )
    noise_warmup_steps: Int = parameter(
        0,
        "Noise warm-up (block)",
        "Steps over which the highest time rises from 0.001 to 1, each token weighing 1: no spikes at the start of a conversion.",
        ge=0,
        le=MOST_STEPS,
    )
    mask_half_life: Float = parameter(
        0.1,
        "Mask half-life (block)",
        "Later tokens of a block are masked first: share of the block in which the odds halve; 0: all alike, as mask_count says.",
        ge=0,
        le=1000,
    )
    ar_loss_weight: Float = parameter(
        0.0,
        "Next-token loss (block)",
        "With clean_context causal: weight of next-token prediction on the clean document, beside the blocks.",
        ge=0,
        le=1000,
    )

    # --- adapters
    lora: bool = parameter(
        False, "LoRA", "Train a low-rank adapter instead of all weights.", form=True
    )
    load_in_4bit: bool = parameter(
        False, "4-bit base (QLoRA)", "NF4 base weights; needs LoRA.", form=True
    )
    lora_r: Int = parameter(
        32,
        "LoRA rank",
        "Rank of the adapter.",
        form={"minimum": 4, "maximum": 64, "multipleOf": 4},
        ge=1,
        le=2**14,
    )
    lora_alpha: Int = parameter(
        64,
        "LoRA alpha",
        "Scale of the adapter.",
        form={"minimum": 4, "maximum": 128, "multipleOf": 4},
        ge=1,
        le=10**6,
    )
    lora_dropout: Float = parameter(
        0.0,
        "LoRA dropout",
        "Dropout before the adapter; above 0 the loss depends on the layout.",
        form={"minimum": 0, "maximum": 0.9},
        ge=0,
        le=0.9,
    )
    lora_targets: str = parameter(
        "auto",
        "LoRA targets",
        "auto (all linear layers but the head) or layer names, comma separated.",
    )
    adaptor_name: str = parameter(
        "adaptor",
        "Adapter name",
        "Name of the result. Left at adaptor, a job of a template is named after the template.",
        form=True,
        pattern=NAME_PATTERN,
    )
    fuse_model: bool = parameter(
        True, "Fuse", "Save a full model that transformers loads without this plugin.", form=True
    )
    fuse_base: Literal["trained", "original"] = parameter(
        "trained",
        "Fuse onto",
        "trained: the 4-bit weights trained on, dequantised; original: the unquantised base.",
    )

    # --- speed and memory
    recompute: Literal["auto", "none", "selective", "full"] = parameter(
        "auto",
        "Recompute",
        "Recompute activations to save memory; auto: in as few layers as fit.",
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "varlen"] = parameter(
        "auto", "Attention", "Attention kernel."
    )
    compile: Literal["auto", "on", "off"] = parameter(
        "auto", "Compile", "torch.compile of each layer; auto is on for GPUs."
    )
    cuda_graphs: bool = parameter(
        False,
        "CUDA graphs",
        "Capture the encoder for a few sizes of step: for small steps, whose launches take longest.",
    )
    float8: bool = parameter(
        False,
        "Float8",
        "Linear layers train with float8 products (torchao; GPUs of compute capability 8.9 or newer).",
    )
    parallel: Literal["auto", "ddp", "fsdp2", "zero2", "zero3"] = parameter(
        "auto",
        "Parallel",
        "ddp: a full copy on each device. zero2 shards gradients and states, zero3 (fsdp2) weights too; auto: ddp if it fits.",
    )
    num_processes: AutoThreads = parameter(
        "auto", "Processes", "On each machine; auto is one a GPU, or one on a CPU."
    )
    num_machines: Int = parameter(
        1, "Machines", "Machines that train together, with as many processes each.", ge=1, le=4096
    )
    machine_rank: Int = parameter(
        0, "Machine rank", "This machine's number, from 0.", ge=0, le=4095
    )
    main_process_ip: str = parameter(
        "127.0.0.1", "Main address", "Machine 0's address, as the others reach it."
    )
    main_process_port: AutoPort = parameter(
        "auto", "Main port", "Port of machine 0; auto picks a free one, on one machine."
    )

    # --- logs, evaluation, checkpoints
    logging_steps: Int = parameter(
        10, "Log every", "Steps between metrics.", form=True, ge=1, le=MOST_STEPS
    )
    eval_strategy: Literal["no", "steps", "epoch"] = parameter(
        "steps", "Evaluate", "no, every eval_steps, or every pass.", form=True
    )
    eval_share: Float = parameter(
        0.1,
        "Evaluation share",
        "Share of the rows held out where the data has no eval split; streaming holds out at most 0.01.",
        ge=0,
        le=0.2,
    )
    drop_eval_prompts: bool = parameter(
        False,
        "Drop evaluation prompts",
        "Leave out training rows whose prompt, with any answer, is in the data's own eval split.",
    )
    eval_steps: Float = parameter(
        0.25, "Evaluate every", "Steps; below 1 a share of the run.", gt=0, le=MOST_STEPS
    )
    eval_on_start: bool = parameter(True, "Evaluate first", "Evaluate before the first step too.")
    save_steps: Float = parameter(
        0.25, "Save every", "Steps; below 1 a share of the run.", gt=0, le=MOST_STEPS
    )
    save_total_limit: Int = parameter(
        2, "Checkpoints kept", "Older ones are removed.", ge=1, le=10**6
    )
    publish: Literal["auto", "best", "last", "average"] = parameter(
        "auto",
        "Publish",
        "Weights of the result: of the best evaluation, which is saved; of the last step; or the mean of the keep_best best checkpoints. "
        "auto: best, or last without an evaluation.",
    )
    patience: Int = parameter(
        0,
        "Patience",
        "Evaluations in a row without a new best after which the run ends; 0 never ends it early.",
        ge=0,
        le=10**6,
    )
    keep_best: AutoCheckpoints = parameter(
        "auto",
        "Best kept",
        "Best checkpoints held beyond save_total_limit; auto is 3 with publish average, else 1. publish last holds one.",
    )
    resume: Annotated[str, BeforeValidator(yes_or_no)] = parameter(
        "false",
        "Resume",
        "false, true for run_dir's last checkpoint, or a run folder or checkpoint to resume from.",
    )
    log_to_wandb: bool = parameter(
        False,
        "Weights & Biases",
        "Also log there; needs a key in the environment, or WANDB_MODE=offline.",
        form=True,
    )
    wandb_project: str = parameter(
        "", "W&B project", "Empty takes the host's setting, or WANDB_PROJECT."
    )
    seed: Int = parameter(
        42, "Seed", "Seeds data order, noise and new weights.", form=True, ge=0, lt=2**63
    )
    run_dir: str = parameter("", "Run folder", "Empty is runs/<date>-<name>.")
    hang_timeout_s: Int = parameter(
        1800,
        "Hang timeout (s)",
        "Silence that ends a run, with a stack dump. Loading, compiling, saving are silent.",
        ge=10,
        le=10**7,
    )

    @property
    def base(self) -> str:
        """Return the folder or hub id of the weights that the run begins with; empty for a new
        model.
        """
        return self.model_name or self.start_from

    @property
    def held_best(self) -> int:
        """Return the number of best checkpoints that outlive save_total_limit."""
        if self.publish != "last" and isinstance(self.keep_best, int):
            return self.keep_best
        return 3 if self.publish == "average" else 1

    def as_json(self) -> dict[str, Any]:
        """Return {public name: value} of every parameter, as run.json holds them."""
        return self.model_dump(by_alias=True)

    def differences(self, other: Params) -> dict[str, Any]:
        """Return this job's parameters, by public name, that differ from those of `other`."""
        before = other.as_json()
        return {name: value for name, value in self.as_json().items() if value != before[name]}


# JSON Schema of each parameter by public name: type or alternatives, bounds, default, title,
# description, form.
SCHEMA: dict[str, dict[str, Any]] = Params.model_json_schema(by_alias=True)["properties"]

# Groups of the help text, each by its first parameter.
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

# Values of `parallel` that shard the model.
SHARDED = ("fsdp2", "zero2", "zero3")
