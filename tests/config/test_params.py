"""Parameters against a table written by hand: names, defaults, allowed values."""

from __future__ import annotations

import pytest

from plugin.base.errors import JobError
from plugin.config.aliases import ALIASES
from plugin.config.fields import NAME_PATTERN
from plugin.config.methods import METHODS
from plugin.config.params import SCHEMA, Params
from plugin.config.parse import parse

REQUIRED = {"dataset_name": "data.jsonl", "model_name": "model"}
TEXT, BOOL = "text", (True, False)

# name: (default, accepted words or TEXT or BOOL, or bounds as (kind, lowest that passes, highest
# that passes, values refused))
TABLE: dict[str, tuple[object, object]] = {
    "train_device": ("auto", ("auto", "cuda", "cpu", "tpu")),
    "gpu_ids": ("auto", ("auto", "0", "0,2", "0, 2")),
    "training_method": ("bert", ("bert", "dream", "llada", "block", "causal")),
    "training_stage": ("sft", ("sft", "pretrain")),
    "model_name": ("", TEXT),
    "model_config": ("", TEXT),
    "start_from": ("", TEXT),
    "init_from": ("", TEXT),
    "tokenizer_name": ("", TEXT),
    "dataset_name": ("", TEXT),
    "text_field": ("text", TEXT),
    "text_rows": ("paragraph", ("line", "paragraph", "file")),
    "input_template": ("", TEXT),
    "output_template": ("", TEXT),
    "instruction_template": ("", TEXT),
    "batch_size": (4, ("int", 1, 16_384)),
    "gradient_accumulation_steps": (1, ("int", 1, 16_384)),
    "per_device_eval_batch_size": ("auto", ("auto or int", 1, 16_384)),
    "tokens_per_batch": ("auto", ("auto or int", 1, 100_000_000)),
    "packing": ("auto", ("auto", "on", "off")),
    "learning_rate_schedule": (
        "cosine",
        (
            "constant",
            "linear",
            "cosine",
            "constant_with_warmup",
            "wsd",
            "wsd_one_minus_sqrt",
            "one_minus_sqrt",
        ),
    ),
    "learning_rate": (2e-5, ("float", 1e-12, 1.0)),
    "num_train_epochs": (0, ("float", 0.0, 1_000_000)),
    "publish": ("auto", ("auto", "best", "last", "average")),
    "keep_best": ("auto", ("auto or int", 1, 1000)),
    "patience": (0, ("int", 0, 1_000_000)),
    "rope_theta": (0, ("float", 0.0, 10**12)),
    "train_tokens": (0, ("int", 0, 10**15)),
    "batch_warmup_tokens": (0, ("int", 0, 10**15)),
    "decay_ratio": (0.1, ("float", 1e-9, 1.0)),
    "train_steps": (1000, ("int", 1, 1_000_000_000)),
    "max_length": (1024, ("int", 1, 1_048_576)),
    "mask_prompt_loss": (True, BOOL),
    "train_turns": ("last", ("last", "all", "random_prefix", "first")),
    "eos_policy": ("block", ("single", "block", "batch")),
    "eos_block_length": (32, ("int", 1, 1_048_576)),
    "load_in_4bit": (False, BOOL),
    "lora": (False, BOOL),
    "lora_r": (32, ("int", 1, 16_384)),
    "lora_alpha": (64, ("int", 1, 1_000_000)),
    "lora_dropout": (0.0, ("float", 0.0, 0.9)),
    "lora_targets": ("auto", TEXT),
    "dtype": ("auto", ("auto", "float32", "float16", "bfloat16")),
    "optim": ("adamw", ("adamw", "adamw_8bit")),
    "weight_decay": (0, ("float", 0.0, 1.0)),
    "max_grad_norm": (1, ("float", 0.0, 1_000_000_000)),
    "warmup_ratio": (0.1, ("float", 0.0, 0.999)),
    "warmup_steps": (0, ("int", 0, 1_000_000_000)),
    "logging_steps": (10, ("int", 1, 1_000_000_000)),
    "eval_strategy": ("steps", ("no", "steps", "epoch")),
    "eval_share": (0.1, ("float", 1e-9, 0.2)),
    "drop_eval_prompts": (False, BOOL),
    "eval_steps": (0.25, ("float", 1e-9, 1_000_000_000)),
    "save_steps": (0.25, ("float", 1e-9, 1_000_000_000)),
    "save_total_limit": (2, ("int", 1, 1_000_000)),
    "resume": ("false", TEXT),
    "num_proc": ("auto", ("auto or int", 1, 1_024)),
    "truncation": ("right", ("right", "filter")),
    "noise_schedule": ("linear", ("linear", "cosine")),
    "t_sampling": ("stratified", ("iid", "stratified")),
    "mask_count": ("bernoulli", ("bernoulli", "exact")),
    "t_min": (0, ("float", 0.0, 0.999)),
    "t_max": (1, ("float", 1e-9, 1.0)),
    "complementary": (False, BOOL),
    "objective": ("mdlm", ("mdlm", "mlm")),
    "mask_rate": (0.3, ("float", 0.001, 1.0)),
    "mlm_replace": ("mask", ("mask", "bert")),
    "stochastic_length": (0, ("float", 0.0, 1.0)),
    "prompt_drop": (0, ("float", 0.0, 1.0)),
    "loss_norm": ("auto", ("auto", "token", "sequence", "masked", "batch")),
    "certainty_weight": (0, ("float", 0.0, 100.0)),
    "perbatch_cutoff": (True, BOOL),
    "resp_cutoff_ratio": (0, ("float", 0.0, 1.0)),
    "loss_weight_type": ("cart[geo_p:0.3]", TEXT),
    "block_size": ("auto", ("auto or int", 1, 1_048_576)),
    "block_views": (1, ("int", 1, 2)),
    "clean_context": ("block", ("block", "causal")),
    "block_shift": (False, BOOL),
    "block_schedule": ("", TEXT),
    "noise_warmup_steps": (0, ("int", 0, 1_000_000_000)),
    "mask_half_life": (0.1, ("float", 0.0, 1000.0)),
    "ar_loss_weight": (0, ("float", 0.0, 1000.0)),
    "recompute": ("auto", ("auto", "none", "selective", "full")),
    "attn_implementation": ("auto", ("auto", "eager", "sdpa", "varlen")),
    "compile": ("auto", ("auto", "on", "off")),
    "cuda_graphs": (False, BOOL),
    "float8": (False, BOOL),
    "parallel": ("auto", ("auto", "ddp", "fsdp2", "zero2", "zero3")),
    "num_processes": ("auto", ("auto or int", 1, 1_024)),
    "num_machines": (1, ("int", 1, 4_096)),
    "machine_rank": (0, ("int", 0, 4_095)),
    "main_process_ip": ("127.0.0.1", TEXT),
    "main_process_port": ("auto", ("auto or int", 1, 65535)),
    "adaptor_name": ("adaptor", ("a", "Model-1.5_b", "x" * 64)),
    "fuse_model": (True, BOOL),
    "fuse_base": ("trained", ("trained", "original")),
    "log_to_wandb": (False, BOOL),
    "wandb_project": ("", TEXT),
    "seed": (42, ("int", 0, 2**63 - 1)),
    "run_dir": ("", TEXT),
    "hang_timeout_s": (1800, ("int", 10, 10_000_000)),
    "streaming": (False, BOOL),
    "insert_eos": (True, BOOL),
    "eval_on_start": (True, BOOL),
}
WORDS = {
    name: words
    for name, (_, words) in TABLE.items()
    if words == BOOL or (words != TEXT and "int" not in words[0] and words[0] != "float")
}
NUMBERS = {
    name: bounds for name, (_, bounds) in TABLE.items() if bounds != TEXT and name not in WORDS
}


def accepts(name: str, value: object) -> bool:
    """Tell whether a value itself is allowed; the rules between parameters come later."""
    try:
        Params.model_validate({name: value})
    except ValueError:
        return False
    return True


def test_the_fields_are_those_of_the_table() -> None:
    assert set(SCHEMA) == set(TABLE)


@pytest.mark.parametrize(("name", "default"), [(name, row[0]) for name, row in TABLE.items()])
def test_every_default_is_the_published_one(name: str, default: object) -> None:
    value = parse(REQUIRED).params.as_json()[name]
    assert value == REQUIRED.get(name, default)
    assert isinstance(value, bool) == isinstance(default, bool)


@pytest.mark.parametrize(("name", "words"), WORDS.items())
def test_every_word_is_accepted_and_no_other(name: str, words: tuple[object, ...]) -> None:
    assert all(accepts(name, word) for word in words)
    assert not any(accepts(name, word) for word in ("", "two words", "ü", None, [], 7))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, words in WORDS.items()
        if words != BOOL and name not in ("gpu_ids", "adaptor_name")
    ],
)
def test_a_parameter_accepts_exactly_these_words(name: str) -> None:
    assert tuple(SCHEMA[name]["enum"]) == WORDS[name]


@pytest.mark.parametrize(("name", "bounds"), NUMBERS.items())
def test_bounds_are_the_published_ones(name: str, bounds: tuple[str, float, float]) -> None:
    kind, lowest, highest = bounds
    step = 1e-3 if kind == "float" else 1
    assert accepts(name, lowest)
    assert not accepts(name, lowest - step)
    assert accepts(name, highest)
    assert not accepts(name, highest + step)
    assert accepts(name, "auto") == (kind == "auto or int")
    if kind != "float":
        assert not accepts(name, lowest + 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0),
        ("t_max", 0),
        ("eval_steps", 0),
        ("save_steps", 0),
        ("warmup_ratio", 1),
        ("t_min", 1),
    ],
)
def test_open_bounds_exclude_the_bound(name: str, value: float) -> None:
    assert not accepts(name, value)


@pytest.mark.parametrize("value", ["1,,2", "-1", "0;2", "0,", ",0", "all", "GPU-1", "0 2"])
def test_gpu_ids_accepts_auto_or_positions(value: str) -> None:
    assert not accepts("gpu_ids", value)


@pytest.mark.parametrize(
    "name", ["../up", "a/b", ".hidden", "-flag", "", "x" * 65, "a b", "a\n", "ü"]
)
def test_a_name_stays_inside_its_folder(name: str) -> None:
    assert not accepts("adaptor_name", name)


def test_the_name_pattern_is_the_promised_one() -> None:
    assert NAME_PATTERN == r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def test_params_cannot_be_changed_or_extended() -> None:
    params = parse(REQUIRED).params
    with pytest.raises(ValueError, match="frozen"):
        params.batch_size = 8
    assert not accepts("no_such_field", 1)


def test_every_field_says_what_it_is() -> None:
    for name, field in SCHEMA.items():
        assert field["title"], name
        assert field["description"].endswith("."), name


def test_common_fields_are_on_the_form_and_keys_are_not() -> None:
    on_form = {name for name, field in SCHEMA.items() if field["form"]}
    assert {
        "training_method",
        "learning_rate",
        "batch_size",
        "max_length",
        "train_steps",
        "lora",
        "fuse_model",
    } <= on_form
    assert not {
        name
        for name in TABLE
        if any(word in name for word in ("key", "token", "secret", "password"))
    } - {
        "tokenizer_name",
        "tokens_per_batch",
        "train_tokens",
        "batch_warmup_tokens",
    }


def test_form_bounds_are_the_hosts_tighter_ones() -> None:
    form = {
        name: field["form"] for name, field in SCHEMA.items() if isinstance(field["form"], dict)
    }
    offered = form.pop("training_method")
    assert offered["enum"] == [
        "bert",
        "dream",
        "llada",
        "block",
    ]  # the baseline is for the command line
    assert accepts("training_method", "causal")
    assert form == {
        "learning_rate": {"minimum": 1e-6},
        "block_size": {"type": "string", "pattern": "^(auto|[0-9]{1,7})$"},
        "lora_r": {"minimum": 4, "maximum": 64, "multipleOf": 4},
        "lora_alpha": {"minimum": 4, "maximum": 128, "multipleOf": 4},
        "lora_dropout": {"minimum": 0, "maximum": 0.9},
    }
    assert accepts("lora_r", 1)  # the command line accepts more than the form
    assert accepts("lora_alpha", 500)


def test_aliases_and_tables_name_real_fields() -> None:
    owned = {name for method in METHODS.values() for name in method.options}
    assert set(ALIASES.values()) | owned <= set(TABLE)
    assert not set(ALIASES) & set(TABLE)
    assert {
        "model_name_or_path": "model_name",
        "per_device_train_batch_size": "batch_size",
        "lr_scheduler_type": "learning_rate_schedule",
        "max_steps": "train_steps",
        "lora_rank": "lora_r",
        "adapter_name": "adaptor_name",
        "report_to": "log_to_wandb",
        "gradient_checkpointing": "recompute",
        "dataset_args": "dataset_name",
    }.items() <= ALIASES.items()


def test_tpu_is_refused_by_name() -> None:
    assert "tpu" in WORDS["train_device"]
    with pytest.raises(JobError) as caught:
        parse({**REQUIRED, "train_device": "tpu"})
    assert [problem.field for problem in caught.value.problems] == ["train_device"]
    assert caught.value.code == 2
    assert "not built yet" in str(caught.value)
