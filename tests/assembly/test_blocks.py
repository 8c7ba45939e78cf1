"""Parts of a block-diffusion run: its block size, rules, attention, memory and length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.causal_lm import write_causal_lm
from helpers.tiny import (
    MASK,
    SPECIAL,
    VOCABULARY,
    pairs,
    random_documents,
    tiny_config,
    word_tokenizer,
)

from plugin.assembly.attention import check_fits, choose_attention, estimated_backend
from plugin.assembly.heaviest import lengths_of
from plugin.assembly.model import block_attention, chosen_size, with_block_size
from plugin.assembly.resolve import check_noise_warmup
from plugin.assembly.rules import diffusion_facts, sampler_settings, step_rules
from plugin.assembly.training_data import training_data
from plugin.base.errors import JobError
from plugin.config.params import Params
from plugin.data.chat import ChatFormat
from plugin.data.packing import Layout
from plugin.models.configuration import set_attention
from plugin.objectives.answers import BlockBorders, EndFill
from plugin.objectives.block import Blocks
from plugin.run.facts import BlockFacts
from plugin.training.loop import Cadence
from plugin.training.step import StepRules

WORDS = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]


def params_of(**values: Any) -> Params:
    return Params.model_validate({"training_method": "block", "block_size": 8, **values})


def rules_of(**values: Any) -> StepRules:
    return step_rules(params_of(**values), ChatFormat(word_tokenizer(WORDS)))


# --- block size


def test_auto_is_the_models_own_size_or_one_for_its_parameters() -> None:
    params, config = params_of(block_size="auto", max_length=64), tiny_config("qwen3")
    assert block_attention(params, config) == BlockFacts(size=16)
    big = tiny_config(
        "qwen3", hidden_size=4096, intermediate_size=16_384, num_hidden_layers=14, head_dim=1024
    )
    assert chosen_size(params, big).value == 32
    set_attention(config, "block", BlockFacts(size=4, clean_context="causal", shift=True))
    wanted = BlockFacts(size=4)  # how it attends is the job's to say
    assert block_attention(params, config) == wanted
    short = params.model_copy(update={"max_length": 3})
    assert chosen_size(short, config) == (3, "the model's own")


def test_a_chosen_size_is_said_with_its_reason(tmp_path: Path) -> None:
    said: list[str] = []
    params = params_of(block_size="auto", model_name=str(write_causal_lm(tmp_path)))
    assert with_block_size(params, said.append).block_size == 16
    assert said == ["block_size: 16, for a model of up to 2 billion parameters"]
    assert with_block_size(params_of(), said.append).block_size == 8
    assert len(said) == 1


def test_a_schedule_ends_with_the_size_of_the_model() -> None:
    values = {"block_schedule": "[[0, 1], [500, 12]]", "training_stage": "pretrain"}
    params = params_of(block_size="auto", clean_context="causal", block_shift=True, **values)
    facts = block_attention(params, tiny_config("llama"))
    assert facts == BlockFacts(size=12, clean_context="causal", shift=True)
    assert block_attention(Params(), tiny_config("llama")) is None


# --- rules


def test_parameters_become_the_noising_of_the_run() -> None:
    values = {"noise_warmup_steps": 7, "block_views": 2, "mask_half_life": 0.25}
    more = {"clean_context": "causal", "ar_loss_weight": 0.3, "block_shift": True}
    assert rules_of(**values, **more).noising == Blocks(
        size=8, views=2, shift=True, causal=True, half_life=0.25, ar_weight=0.3, warmup=7
    )
    assert rules_of().loss.norm == "token"


def test_answers_end_on_the_grid_and_are_shown_in_full() -> None:
    unread = {"eos_policy": "block", "prompt_drop": 0.5, "eos_block_length": 32}
    (fill,) = rules_of(**unread).answers.transforms
    assert isinstance(fill, EndFill)
    assert (fill.policy, fill.block) == ("grid", 8)
    assert not isinstance(fill, BlockBorders)
    (texts,) = rules_of(training_stage="pretrain").answers.transforms
    assert isinstance(texts, EndFill)
    assert texts.policy == "single"


@pytest.mark.parametrize(("longest", "new"), [(1024, 256), (64, 32), (40, 16), (10, 8)])
def test_the_sampler_denoises_the_trained_blocks(longest: int, new: int) -> None:
    settings = sampler_settings(params_of(max_length=longest))
    assert settings.max_new_tokens == new
    assert (settings.block_length, settings.steps, settings.cache) == (8, 8, "exact")
    assert settings.grow


def test_the_folder_records_blocks_and_masks() -> None:
    params = params_of(block_views=2, prompt_drop=0.5)
    facts = diffusion_facts(params, step_rules(params, ChatFormat(word_tokenizer(WORDS))))
    assert facts.block == BlockFacts(size=8)
    assert (facts.block_views, facts.mask_half_life, facts.ar_loss_weight) == (2, 0.1, 0)
    assert (facts.eos_policy, facts.eos_block_length, facts.prompt_drop) == ("grid", 8, 0)


# --- attention, memory


def attention_of(device: str, **values: Any) -> Any:
    config = tiny_config("llama")
    return choose_attention(params_of(**values), config, torch.device(device), torch.float32, 10)


def test_rows_are_packed_whatever_their_length() -> None:
    found = attention_of("cpu", tokens_per_batch=256)
    assert (found.layout, found.backend) == (Layout(packed=True, tokens=256), "loop")
    assert "a mask for each document (a CPU)" in found.why
    assert attention_of("cuda", attn_implementation="sdpa").backend == "loop"


def test_a_gpu_attends_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugin.assembly.attention._why_no_compile", lambda device: "")
    monkeypatch.setattr("plugin.assembly.attention.why_no_flex", lambda *here: "")
    found = attention_of("cuda")
    assert found.backend == "flex"
    here = tiny_config("llama"), torch.device("cpu"), torch.float32
    assert estimated_backend(found, *here) == "loop", "no varlen here"
    monkeypatch.setattr("plugin.assembly.attention.why_no_varlen", lambda *here: "")
    assert estimated_backend(found, *here) == "varlen"
    assert estimated_backend(attention_of("cpu"), *here) == "loop"
    monkeypatch.setattr("plugin.assembly.attention._why_no_compile", lambda device: "no gcc")
    assert attention_of("cuda").backend == "loop"


def test_a_micro_batch_has_room_for_rows() -> None:
    """A document of 20 tokens, filled to 24 and learned from place 8 on: a row of 24 + 2 x 16."""
    documents, how = pairs((8, 12), (3, 2)), rules_of(block_views=2)
    assert lengths_of(documents, how).tolist() == [24 + 2 * 16, 8 + 2 * 8]
    check_fits(documents, how, Layout(packed=True, tokens=56))
    with pytest.raises(JobError, match="tokens_per_batch: expected at least the 56 tokens"):
        check_fits(documents, how, Layout(packed=True, tokens=55))


def test_lengths_of_other_methods_are_those_of_documents() -> None:
    documents = random_documents(9)
    how = rules_of(training_method="llada", eos_policy="single")
    assert np.array_equal(lengths_of(documents, how), documents.lengths)
    assert how.noise.mask_id == MASK


# --- length


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    cadence = Cadence(steps=10, log_every=1, eval_every=0, save_every=5)
    check_noise_warmup(params_of(noise_warmup_steps=10), cadence)
    check_noise_warmup(Params(noise_warmup_steps=11), cadence)
    with pytest.raises(JobError, match="noise_warmup_steps: expected at most the 10 steps"):
        check_noise_warmup(params_of(noise_warmup_steps=11), cadence)


def test_a_schedule_needs_packs(tmp_path: Path) -> None:
    values = {"model_name": str(tmp_path / "missing"), "training_stage": "pretrain"}
    with pytest.raises(JobError, match="block_schedule: expected a model and a setting"):
        training_data(params_of(block_schedule="[[0, 8]]", **values))
