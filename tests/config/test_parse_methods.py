"""Parameters of the methods: mistakes are refused in one line before anything is loaded."""

from __future__ import annotations

import pytest

from plugin.base.errors import JobError
from plugin.config.parse import Parsed, parse

BASE = {"model_name": "m", "dataset_name": "d.jsonl"}


def problem_of(**values: object) -> str:
    with pytest.raises(JobError) as caught:
        parse({**BASE, **values})
    assert caught.value.code == 2
    (problem,) = caught.value.problems
    line = problem.line
    assert "\n" not in line
    return line


def parsed(**values: object) -> Parsed:
    return parse({**BASE, **values})


@pytest.mark.parametrize(
    "value",
    [
        "cart[geo_p:1.5]",
        "cart[geo_p:0]",
        "cart[geo_p:-0.3]",
        "cart",
        "Uniform",
        "cart[geo_p:.3",
        "1/t",
    ],
)
def test_an_unknown_loss_weight_names_the_allowed_ones(value: str) -> None:
    """The best-known predecessor silently falls back to 0.3."""
    line = problem_of(training_method="dream", loss_weight_type=value)
    assert line.startswith(
        "error[2]: loss_weight_type: expected cart[geo_p:P] with 0 < P <= 1, scheduler or uniform"
    )
    assert repr(value) in line


@pytest.mark.parametrize(
    "value",
    [
        "cart[geo_p:.5]",
        "cart[geo_p:1.0]",
        "cart[geo_p:1]",
        "cart[geo_p:0.1]",
        "scheduler",
        "uniform",
    ],
)
def test_every_documented_loss_weight_is_taken(value: str) -> None:
    assert parsed(training_method="dream", loss_weight_type=value).params.loss_weight_type == value


def test_four_bits_without_lora_are_refused() -> None:
    line = problem_of(load_in_4bit=True)
    assert "load_in_4bit: expected lora true as well, got lora false" in line


def test_a_new_model_takes_neither_lora_nor_four_bits() -> None:
    with pytest.raises(JobError) as caught:
        parse(
            {
                "dataset_name": "d.jsonl",
                "model_config": "c.json",
                "lora": True,
                "load_in_4bit": True,
            }
        )
    assert {problem.field for problem in caught.value.problems} == {"lora", "load_in_4bit"}


@pytest.mark.parametrize("name", ["lora_r", "lora_rank", "lora_alpha"])
def test_a_rank_or_scale_of_zero_is_refused(name: str) -> None:
    line = problem_of(lora=True, **{name: 0})
    assert "expected an integer >= 1 and <= " in line
    assert {"lora_rank": "lora_r"}.get(name, name) in line


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lora_dropout", 0.95, "a number >= 0 and <= 0.9"),
        ("resp_cutoff_ratio", 1.5, "a number >= 0 and <= 1"),
        ("prompt_drop", -0.1, "a number >= 0 and <= 1"),
        ("stochastic_length", 2, "a number >= 0 and <= 1"),
        ("eos_block_length", 0, "an integer >= 1 and <= 1048576"),
        ("t_max", 1.1, "a number > 0 and <= 1"),
        ("eos_policy", "always", "one of single, block, batch"),
        ("train_turns", "middle", "one of last, all, random_prefix, first"),
        ("mask_count", "all", "one of bernoulli, exact"),
        ("loss_norm", "mean", "one of auto, token, sequence, masked, batch"),
        ("fuse_base", "both", "one of trained, original"),
        ("optim", "sgd", "one of adamw, adamw_8bit"),
        ("training_method", "llama", "one of bert, dream, llada, block, causal"),
    ],
)
def test_values_out_of_bounds_are_named_with_their_bounds(
    name: str, value: object, expected: str
) -> None:
    line = problem_of(**{name: value})
    assert f"{name}: expected {expected}, got {value!r}." in line


def test_a_time_band_must_not_be_empty() -> None:
    assert "t_min: expected less than t_max (0.4), got 0.4" in problem_of(t_min=0.4, t_max=0.4)


def test_lora_dropout_may_be_zero() -> None:
    assert parsed(lora=True, lora_dropout=0).params.lora_dropout == 0


def test_options_of_the_noise_are_named_with_the_baseline() -> None:
    noise = {"noise_schedule": "cosine", "eos_policy": "batch", "t_min": 0.2}
    notes = parsed(training_method="causal", **noise).notes
    assert sorted(notes) == [f"{name}: has no effect with causal." for name in sorted(noise)]
    assert parsed(training_method="llada", **noise).notes == ()
    assert parsed(training_method="causal").notes == ()


@pytest.mark.parametrize("method", ["bert", "llada"])
def test_dreams_own_options_are_named_in_the_log_elsewhere(method: str) -> None:
    notes = parsed(training_method=method, loss_weight_type="uniform", resp_cutoff_ratio=0.5).notes
    assert sorted(note.split(":")[0] for note in notes) == ["loss_weight_type", "resp_cutoff_ratio"]
    assert (
        parsed(training_method="dream", loss_weight_type="uniform", resp_cutoff_ratio=0.5).notes
        == ()
    )


def test_mlm_of_answers_is_refused() -> None:
    line = problem_of(objective="mlm")
    assert "objective: expected training_stage pretrain as well, got mlm with sft." in line


def test_mlm_names_the_options_without_effect() -> None:
    """Options of another method are named once, as those of any job."""
    unused = {
        "noise_schedule": "cosine",
        "t_sampling": "iid",
        "t_min": 0.2,
        "t_max": 0.8,
        "complementary": True,
        "loss_weight_type": "uniform",
    }
    job = {"objective": "mlm", "training_stage": "pretrain", **unused}
    of_dream = parsed(training_method="dream", **job).notes
    assert {f"{name}: has no effect with objective mlm." for name in unused} <= set(of_dream)
    of_bert = [note for note in parsed(**job).notes if note.startswith("loss_weight_type")]
    (note,) = of_bert
    assert "belongs to training_method dream" in note
    of_mdlm = parsed(mask_rate=0.2, mlm_replace="bert").notes
    assert {
        f"{name}: has no effect without objective mlm." for name in ("mask_rate", "mlm_replace")
    } <= set(of_mdlm)
    plain = parsed(objective="mlm", training_stage="pretrain", mask_rate=0.2, mlm_replace="bert")
    assert not [note for note in plain.notes if "objective" in note]


def test_init_from_needs_a_configuration_of_its_own() -> None:
    line = problem_of(init_from="small")
    assert "init_from: expected model_config as well, got model_name." in line
    with pytest.raises(JobError) as caught:
        parse({"dataset_name": "d.jsonl", "init_from": "small"})
    assert {problem.field for problem in caught.value.problems} == {"init_from", "model_name"}
