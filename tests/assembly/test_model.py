"""Parts of a run: each method's defaults, and the settings of one stage or method alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.support import pairs, write_rows
from helpers.tiny import CLS, MASK, SEP, word_tokenizer

from plugin.assembly import corpus
from plugin.assembly.corpus import prepare_corpus
from plugin.assembly.precision import weight_dtype
from plugin.assembly.rules import diffusion_facts, sampler_settings, step_rules
from plugin.base.errors import JobError
from plugin.config.params import Params
from plugin.data.chat import ChatFormat
from plugin.objectives.answers import (
    BlockBorders,
    Cutoffs,
    LengthSplit,
    PromptDrop,
    Transform,
)
from plugin.objectives.noise import Levels
from plugin.training.step import StepRules


def made(method: str = "bert", **values: Any) -> StepRules:
    params = Params.model_validate({"training_method": method, **values})
    return step_rules(params, ChatFormat(word_tokenizer(["a"])))


def transforms(how: StepRules) -> tuple[Transform, ...]:
    return how.answers.transforms


def weights(how: StepRules, t: float = 0.25) -> list[float]:
    """Return the loss weights of a document 0 1 1 0 (1 = hidden) at time t."""
    hidden = np.array([False, True, True, False])
    levels = Levels.of(how.noise.schedule, [t], [4])
    return how.loss.weight(hidden, levels, [1.0])[hidden].tolist()


@pytest.mark.parametrize(
    ("method", "norm"), [("bert", "token"), ("llada", "sequence"), ("dream", "masked")]
)
def test_each_method_has_its_authors_norm_unless_one_is_chosen(method: str, norm: str) -> None:
    assert made(method).loss.norm == norm
    assert made(method, loss_norm="batch").loss.norm == "batch"


def test_bert_and_llada_weigh_by_time_and_dream_by_context() -> None:
    assert weights(made("bert")) == weights(made("llada")) == [4, 4]
    # Each token sees one neighbour directly, and one behind the other token: .15 (1 + .7)
    assert weights(made("dream")) == pytest.approx([0.255, 0.255])
    assert weights(made("dream", loss_weight_type="cart[geo_p:1.0]")) == [0.5, 0.5]
    assert weights(made("dream", loss_weight_type="scheduler")) == [4, 4]
    assert weights(made("dream", loss_weight_type="uniform")) == [1, 1]
    assert weights(made("llada", loss_weight_type="uniform")) == [4, 4], "it belongs to dream"


def test_cutoffs_are_dreams_and_for_answers() -> None:
    how = {"resp_cutoff_ratio": 0.5}
    assert transforms(made("dream", **how))[0] == Cutoffs(perbatch=True, ratio=0.5)
    for other in (
        made("llada", **how),
        made("bert", **how),
        made("dream", training_stage="pretrain", **how),
    ):
        assert not [each for each in transforms(other) if isinstance(each, Cutoffs)]


def test_prompts_are_dropped_in_sft_and_texts_cut_in_pretraining() -> None:
    values = {"prompt_drop": 0.1, "stochastic_length": 0.01}
    sft, pretrain = made(**values), made(training_stage="pretrain", **values)
    assert transforms(sft) == (sft.answers.fill, BlockBorders(32), PromptDrop(0.1))
    split = LengthSplit(share=0.01, start_id=CLS)
    assert transforms(pretrain) == (pretrain.answers.fill, split)
    assert (sft.answers.fill.policy, pretrain.answers.fill.policy) == ("block", "single")


def test_a_job_without_the_options_only_fills_answers() -> None:
    how = made("dream", eos_policy="batch", perbatch_cutoff=False)
    assert transforms(how) == (how.answers.fill,)


def test_tokens_come_from_the_chat_format() -> None:
    how = made(max_length=77, eos_block_length=9, t_min=0.2, t_max=0.9, seed=5)
    fill = how.answers.fill
    assert (how.noise.mask_id, fill.end_ids, fill.fill_id) == (MASK, (SEP,), SEP)
    assert (fill.max_length, fill.block) == (77, 9)
    assert BlockBorders(9) in transforms(how)
    assert (how.noise.seed, how.noise.t_min, how.noise.t_max) == (5, 0.2, 0.9)


@pytest.mark.parametrize(
    ("policy", "block", "grow"), [("block", 16, True), ("single", 8, True), ("batch", 32, False)]
)
def test_a_model_is_sampled_on_the_canvas_it_learned_on(
    policy: str, block: int, grow: bool
) -> None:
    params = Params.model_validate(
        {"eos_policy": policy, "eos_block_length": 16, "max_length": 128}
    )
    settings = sampler_settings(params)
    assert (settings.block_length, settings.grow) == (block, grow)
    assert settings.max_new_tokens == 64
    assert sampler_settings(params.model_copy(update={"max_length": 4})).block_length <= 4


def test_what_a_model_remembers_of_its_training() -> None:
    params = Params.model_validate(
        {
            "training_method": "dream",
            "resp_cutoff_ratio": 0.2,
            "prompt_drop": 0.1,
            "loss_weight_type": "cart[geo_p:.5]",
        }
    )
    facts = diffusion_facts(params, step_rules(params, ChatFormat(word_tokenizer(["a"]))))
    wanted = {
        "method": "dream",
        "loss_norm": "masked",
        "loss_weight": "cart[geo_p:.5]",
        "perbatch_cutoff": True,
        "resp_cutoff_ratio": 0.2,
        "prompt_drop": 0.1,
        "eos_policy": "block",
    }
    assert {name: facts.content()[name] for name in wanted} == wanted
    assert facts.sampler == sampler_settings(params)


@pytest.mark.parametrize(
    ("values", "compute", "kept"),
    [
        ({}, torch.bfloat16, torch.float32),
        ({"optim": "adamw_8bit"}, torch.bfloat16, torch.bfloat16),
        ({"optim": "adamw_8bit"}, torch.float32, torch.float32),
        ({"lora": True}, torch.bfloat16, torch.bfloat16),
        ({"lora": True}, torch.float32, torch.float32),
    ],
)
def test_full_training_keeps_float32_without_stochastic_rounding(
    values: dict[str, Any], compute: torch.dtype, kept: torch.dtype
) -> None:
    """In full training, weights are bfloat16 only where the optimizer rounds stochastically."""
    assert weight_dtype(Params.model_validate(values), compute) == kept


def test_unread_files_of_a_mixture_are_named(tmp_path: Path, tiny_bert: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "a.jsonl", pairs())
    (folder / "notes.md").write_text("x")
    said: list[str] = []
    values = {
        "model_name": str(tiny_bert),
        "dataset_name": f"{folder}[train:20,test:3]",
        "max_length": 64,
    }
    prepare_corpus(Params.model_validate(values), said.append)
    assert any("not read of the folder: notes.md" in line for line in said)
    assert any("test:N does nothing" in line for line in said)


def test_wrong_pair_is_reported_before_tokenisation(
    tmp_path: Path, tiny_bert: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the data was tokenised first")

    monkeypatch.setattr(corpus, "encode_split", never)
    values = {
        "model_name": str(tiny_bert),
        "dataset_name": str(pairs_file),
        "training_method": "llada",
    }
    with pytest.raises(JobError) as caught:
        prepare_corpus(Params.model_validate(values), lambda _: None)
    assert caught.value.problems[0].field == "training_method"
