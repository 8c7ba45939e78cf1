"""Aliases of parameters: names that other trainers' commands use, and what their values stand for."""

# Each stands for one of ours.
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
