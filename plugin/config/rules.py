"""Rules for resuming a run: the parameters that may differ."""

from __future__ import annotations

# What may be another when a run goes on: where and how fast it runs, how long, what it tells.
# Everything else has already shaped the weights in the checkpoint.
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
    "hang_timeout_s",
}
LENGTH = {
    "train_steps",
    "num_train_epochs",
    "eval_steps",
    "eval_on_start",
    "save_steps",
    "save_total_limit",
    "resume",
}
TOLD = {
    "logging_steps",
    "log_to_wandb",
    "wandb_project",
    "run_dir",
    "adaptor_name",
    "fuse_model",
    "fuse_base",
}
MAY_CHANGE = WHERE | LAYOUT | SPEED | LENGTH | TOLD
# A stream's packs are its steps: these would change them.
NOT_OF_A_STREAM = {
    "batch_size",
    "gradient_accumulation_steps",
    "tokens_per_batch",
    "num_processes",
    "num_machines",
}
