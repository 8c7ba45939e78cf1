"""Parsing of what forms, files and shells send, and its errors."""

from __future__ import annotations

import itertools

import pytest

from plugin.base.errors import JobError, Problem
from plugin.config.parse import Parsed, parse
from plugin.config.wording import did_you_mean, expected

REQUIRED: dict[str, object] = {"dataset_name": "data.jsonl", "model_name": "model"}


def value_of(name: str, value: object) -> object:
    return parse({**REQUIRED, name: value}).params.as_json()[name]


def refused(values: dict[str, object], **options: object) -> list[Problem]:
    with pytest.raises(JobError) as caught:
        parse({**REQUIRED, **values}, **options)
    assert caught.value.code == 2
    return list(caught.value.problems)


# --- coercion


@pytest.mark.parametrize("word", ["on", "true", "1", "yes", "True", "ON", " yes ", True, 1])
def test_what_forms_send_for_a_ticked_box_is_true(word: object) -> None:
    assert value_of("eval_on_start", word) is True
    assert parse({**REQUIRED, "fuse_model": word}).params.fuse_model is True


@pytest.mark.parametrize("word", ["off", "false", "0", "no", "False", "OFF", " no ", False, 0])
def test_what_forms_send_for_an_unticked_box_is_false(word: object) -> None:
    assert value_of("fuse_model", word) is False


@pytest.mark.parametrize("word", ["maybe", "2", 2, "truee", "[]", [True], 0.5])
def test_anything_else_is_no_yes_or_no(word: object) -> None:
    (problem,) = refused({"fuse_model": word})
    assert problem.field == "fuse_model"
    assert problem.expected == "true or false"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "2e-5", 2e-5),
        ("learning_rate", " 3E-4 ", 3e-4),
        ("learning_rate", ".5", 0.5),
        ("learning_rate", 1, 1.0),
        ("num_train_epochs", "0.5", 0.5),
        ("batch_size", "8", 8),
        ("batch_size", " 8 ", 8),
        ("batch_size", "5.0", 5),
        ("batch_size", 5.0, 5),
        ("warmup_steps", "0", 0),
        ("seed", "9223372036854775807", 2**63 - 1),
        ("num_proc", "auto", "auto"),
        ("num_proc", "3", 3),
        ("lora_dropout", "0", 0.0),
        ("gpu_ids", " 0,2 ", "0,2"),
        ("adaptor_name", "my.model_2", "my.model_2"),
        ("t_min", "0.1", 0.1),
    ],
)
def test_text_becomes_the_value_it_spells(name: str, text: object, value: object) -> None:
    parsed = value_of(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("absent", ["", None, "  ", "\n"])
@pytest.mark.parametrize(
    "name",
    ["batch_size", "learning_rate", "fuse_model", "training_method", "num_proc", "adaptor_name"],
)
def test_an_empty_value_is_the_default(name: str, absent: object) -> None:
    assert value_of(name, absent) == parse(REQUIRED).params.as_json()[name]


@pytest.mark.parametrize(
    "wrong",
    [
        "fast",
        "1e",
        "0x10",
        "1,5",
        "5.5",
        "nan",
        "inf",
        float("nan"),
        float("inf"),
        1e400,
        True,
        False,
        [1],
        {},
    ],
)
def test_no_number_is_guessed(wrong: object) -> None:
    (problem,) = refused({"batch_size": wrong})
    assert (problem.field, problem.expected, problem.code) == (
        "batch_size",
        "an integer >= 1 and <= 16384",
        2,
    )


@pytest.mark.parametrize(
    "name",
    ["learning_rate", "num_train_epochs", "weight_decay", "eval_steps", "max_grad_norm", "t_max"],
)
@pytest.mark.parametrize(
    "wrong", ["nan", "inf", "-inf", float("nan"), float("inf"), True, "true", "much", [0.1]]
)
def test_a_real_number_is_finite_and_no_yes(name: str, wrong: object) -> None:
    assert [problem.field for problem in refused({name: wrong})] == [name]


@pytest.mark.parametrize(
    "name",
    [
        "num_proc",
        "num_processes",
        "tokens_per_batch",
        "per_device_eval_batch_size",
        "main_process_port",
    ],
)
@pytest.mark.parametrize("wrong", [0, "-1", True, "many", 1.5])
def test_auto_or_a_number_is_bounded_too(name: str, wrong: object) -> None:
    assert [problem.field for problem in refused({name: wrong})] == [name]


# --- what a problem says


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"batch_size": 0}, "error[2]: batch_size: expected an integer >= 1 and <= 16384, got 0."),
        (
            {"learning_rate": "fast"},
            "error[2]: learning_rate: expected a number > 0 and <= 1, got 'fast'.",
        ),
        (
            {"truncation": "left"},
            "error[2]: truncation: expected one of right, filter, got 'left'.",
        ),
        (
            {"main_process_port": 65536},
            "error[2]: main_process_port: expected 'auto' or an integer >= 1 and <= 65535, got 65536.",
        ),
        (
            {"training_method": "dreem"},
            "error[2]: training_method: expected one of bert, dream, llada, block, causal, got 'dreem'. Did you mean dream?",
        ),
    ],
)
def test_a_wrong_value_names_field_expected_and_got(values: dict[str, object], line: str) -> None:
    (problem,) = refused(values)
    assert problem.line == line


def test_an_auto_parameter_says_its_bounds() -> None:
    assert expected("num_proc") == "'auto' or an integer >= 1 and <= 1024"
    assert expected("main_process_port") == "'auto' or an integer >= 1 and <= 65535"


def test_an_apple_gpu_is_refused_by_name() -> None:
    (problem,) = refused({"train_device": "mps"})
    assert "Apple GPUs are not supported" in problem.fix


def test_all_problems_are_reported_together() -> None:
    problems = refused(
        {
            "batch_size": 0,
            "learning_rate": "fast",
            "no_such_thing": 1,
            "training_method": "gpt",
            "eval_steps": 2.5,
            "streaming": "on",
            "t_min": 0.9,
            "t_max": 0.5,
        }
    )
    assert sorted(problem.field for problem in problems) == sorted(
        [
            "batch_size",
            "learning_rate",
            "no_such_thing",
            "training_method",
            "eval_steps",
            "streaming",
            "t_min",
        ]
    )


def test_a_wrong_field_is_reported_once() -> None:
    """The checks between fields see the default of a refused field and do not refuse it again."""
    fields = [
        problem.field
        for problem in refused(
            {"t_min": 7, "t_max": 0.5, "train_turns": "middle", "eval_steps": -2}
        )
    ]
    assert sorted(fields) == ["eval_steps", "t_min", "train_turns"]


# --- unknown names


def test_an_unknown_name_is_an_error_on_a_command_line() -> None:
    (problem,) = refused({"batch_sise": 8})
    assert problem.field == "batch_sise"
    assert problem.fix == "Did you mean batch_size?"


def test_an_unknown_name_is_a_note_in_a_host() -> None:
    parsed = parse({**REQUIRED, "batch_sise": 8, "qzx": 1}, unknown="note")
    assert parsed.params == parse(REQUIRED).params
    assert len(parsed.notes) == 2
    assert "batch_sise" in parsed.notes[0]
    assert "batch_size" in parsed.notes[0]
    assert "qzx" in parsed.notes[1]
    assert "Did you mean" not in parsed.notes[1]


def test_the_private_spelling_of_an_aliased_field_is_unknown() -> None:
    assert [problem.field for problem in refused({"model_config_file": "x.json"})] == [
        "model_config_file"
    ]


def test_did_you_mean_only_when_close() -> None:
    assert did_you_mean("learning_rat", ["learning_rate", "seed"]) == "Did you mean learning_rate?"
    assert did_you_mean("zebra", ["learning_rate", "seed"]) == ""


# --- aliases


@pytest.mark.parametrize(
    ("alias", "value", "name", "result"),
    [
        ("model_name_or_path", "m", "model_name", "m"),
        ("per_device_train_batch_size", "8", "batch_size", 8),
        ("lr_scheduler_type", "linear", "learning_rate_schedule", "linear"),
        ("max_steps", "50", "train_steps", 50),
        ("lora_rank", "16", "lora_r", 16),
        ("adapter_name", "bob", "adaptor_name", "bob"),
        ("dataset_args", "other.jsonl", "dataset_name", "other.jsonl"),
        ("gradient_checkpointing", "True", "recompute", "full"),
        ("gradient_checkpointing", "off", "recompute", "none"),
        ("gradient_checkpointing", "selective", "recompute", "selective"),
        ("report_to", "none", "log_to_wandb", False),
        ("report_to", "tensorboard", "log_to_wandb", False),
    ],
)
def test_an_alias_sets_its_field(alias: str, value: str, name: str, result: object) -> None:
    base = {key: item for key, item in REQUIRED.items() if key != name}
    assert parse({**base, alias: value}).params.as_json()[name] == result


def test_report_to_wandb_asks_for_wandb() -> None:
    assert parse({**REQUIRED, "report_to": "wandb"}).params.log_to_wandb is True


def test_a_conflicting_pair_is_an_error_whatever_its_order() -> None:
    for names in itertools.permutations(("batch_size", "per_device_train_batch_size")):
        (problem,) = refused(dict(zip(names, (4, 8), strict=True)))
        assert problem.field == "batch_size"
        assert "4" in problem.got
        assert "8" in problem.got


def test_a_pair_that_agrees_is_none() -> None:
    assert (
        parse({**REQUIRED, "batch_size": "8", "per_device_train_batch_size": "8"}).params.batch_size
        == 8
    )
    assert (
        parse({**REQUIRED, "batch_size": "8", "per_device_train_batch_size": ""}).params.batch_size
        == 8
    )


# --- checks between fields


def test_a_job_needs_data_and_one_start() -> None:
    with pytest.raises(JobError) as caught:
        parse({})
    assert [problem.field for problem in caught.value.problems] == ["dataset_name", "model_name"]
    assert [problem.field for problem in refused({"model_config": "c.json"})] == ["model_name"]
    assert (
        parse({"dataset_name": "d", "model_config": "c.json"}).params.model_config_file == "c.json"
    )


def test_epochs_and_steps_both_typed_are_an_error() -> None:
    both = {"num_train_epochs": "1", "train_steps": "10"}
    (problem,) = refused(both, typed={"num_train_epochs", "train_steps"})
    assert problem.field == "train_steps"


def test_a_form_always_sends_both_and_epochs_win_with_one_line() -> None:
    parsed = parse({**REQUIRED, "num_train_epochs": "1.5", "train_steps": "10"})
    (note,) = parsed.notes
    assert note == "train_steps: ignored, because num_train_epochs is 1.5."
    assert parse({**REQUIRED, "num_train_epochs": "0", "train_steps": "10"}).notes == ()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"t_min": 0.5, "t_max": 0.5}, "t_min"),
        ({"eval_steps": 2.5}, "eval_steps"),
        ({"save_steps": "1.5"}, "save_steps"),
        ({"dtype": "float16", "train_device": "cpu"}, "dtype"),
        ({"load_in_4bit": True}, "load_in_4bit"),
        ({"load_in_4bit": True, "lora": True, "float8": True}, "float8"),
        ({"cuda_graphs": True, "train_device": "cpu"}, "cuda_graphs"),
        ({"cuda_graphs": True, "packing": "off"}, "cuda_graphs"),
        ({"cuda_graphs": True, "recompute": "full"}, "cuda_graphs"),
        ({"cuda_graphs": True, "lora": True, "lora_dropout": 0.1}, "cuda_graphs"),
        ({"cuda_graphs": True, "lora": True, "load_in_4bit": True}, "cuda_graphs"),
        ({"cuda_graphs": True, "float8": True}, "cuda_graphs"),
        ({"dtype": "float16", "float8": True}, "float8"),
        ({"dtype": "float32", "float8": True}, "float8"),
        ({"eval_share": 0}, "eval_share"),
        ({"eval_share": 0.21}, "eval_share"),
        ({"text_rows": "word"}, "text_rows"),
    ],
)
def test_fields_that_contradict_one_another_are_named(
    values: dict[str, object], field: str
) -> None:
    assert field in [problem.field for problem in refused(values)]


def test_nothing_is_held_out_where_nothing_is_evaluated() -> None:
    assert parse({**REQUIRED, "eval_share": "0", "eval_strategy": "no"}).params.eval_share == 0


def test_shares_and_whole_steps_pass() -> None:
    params = parse({**REQUIRED, "eval_steps": "0.5", "save_steps": "50.0"}).params
    assert (params.eval_steps, params.save_steps) == (0.5, 50)


# --- notes


def test_an_option_of_another_method_is_one_note() -> None:
    parsed: Parsed = parse(
        {
            **REQUIRED,
            "perbatch_cutoff": "off",
            "resp_cutoff_ratio": "0.2",
            "loss_weight_type": "uniform",
        }
    )
    assert [note.partition(":")[0] for note in parsed.notes] == [
        "perbatch_cutoff",
        "resp_cutoff_ratio",
        "loss_weight_type",
    ]
    assert all("dream" in note and "bert" in note for note in parsed.notes)


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_an_unknown_name_that_shows_nothing_is_quoted(name: str) -> None:
    (problem,) = refused({name: "1"})
    assert problem.field.startswith("'")
    (note,) = parse({**REQUIRED, name: "1"}, unknown="note").notes
    assert note.startswith(f"{problem.field}: not a parameter")
    assert len(note.splitlines()) == 1


@pytest.mark.parametrize("value", ["a\0b", "a\ud800", "/data/\udcff"])
def test_a_text_that_no_file_can_hold_is_refused(value: str) -> None:
    (problem,) = refused({"wandb_project": value})
    assert (problem.field, problem.expected) == (
        "wandb_project",
        "text that UTF-8 can encode, without a null character",
    )


def test_defaults_say_nothing() -> None:
    assert (
        parse({**REQUIRED, "perbatch_cutoff": "true", "loss_weight_type": "cart[geo_p:0.3]"}).notes
        == ()
    )


def test_parsing_its_own_result_changes_nothing() -> None:
    once = parse({**REQUIRED, "learning_rate": "3e-4", "num_proc": "2", "fuse_model": "off"}).params
    assert parse(once.as_json()).params == once


@pytest.mark.parametrize(
    ("values", "typed", "field"),
    [
        ({"train_tokens": 9, "num_train_epochs": 1}, (), "train_tokens"),
        ({"train_tokens": 9, "train_steps": 5}, ("train_tokens", "train_steps"), "train_tokens"),
        ({"train_tokens": 9, "streaming": "false", "training_stage": "sft"}, (), "train_tokens"),
        (
            {"batch_warmup_tokens": 9, "streaming": "false", "training_stage": "sft"},
            (),
            "batch_warmup_tokens",
        ),
    ],
)
def test_token_clock_conflicts_name_their_field(
    values: dict[str, object], typed: tuple[str, ...], field: str
) -> None:
    base = {"model_name": "m", "dataset_name": "d", "training_stage": "pretrain"}
    with pytest.raises(JobError) as refused:
        parse({**base, "streaming": "true", **values}, typed=typed)
    assert field in {problem.field for problem in refused.value.problems}


def test_options_of_a_token_clock_without_effect_are_noted() -> None:
    base = {"model_name": "m", "dataset_name": "d", "training_stage": "pretrain"}
    clock = {"streaming": "true", "train_tokens": 9, "batch_warmup_tokens": 5, "decay_ratio": 0.2}
    notes = parse({**base, **clock}).notes
    for name in ("train_steps: ignored", "batch_warmup_tokens: has no", "decay_ratio: has no"):
        assert [note for note in notes if note.startswith(name)], name
