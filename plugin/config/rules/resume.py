"""Parameters that may differ when a run is resumed: where, how fast and how long it runs, and what
it reports.

Everything else has already shaped the weights of the checkpoint.
"""

from __future__ import annotations

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
