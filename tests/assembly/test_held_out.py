"""Held-out loss of a file: the evaluation of a run on the same rows, to the last digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.support import pairs, write_rows
from helpers.tiny import cpu, tiny_config
from transformers import PreTrainedModel

from plugin.assembly.corpus import prepare_corpus
from plugin.assembly.held_out import evaluated_as, held_out_loss, read_held_out
from plugin.assembly.rules import diffusion_facts, step_rules
from plugin.base.errors import JobError
from plugin.config.parse import parse
from plugin.data.chat import ChatFormat
from plugin.models.diffusion import DiffusionModel
from plugin.models.load import load_model
from plugin.models.tokenizer import load_tokenizer
from plugin.run.facts import ModelFacts
from plugin.training.evaluate import evaluate


@dataclass(frozen=True)
class Job:
    values: dict[str, Any]
    file: Path  # held out
    model: PreTrainedModel
    chat: ChatFormat

    @property
    def module(self) -> DiffusionModel:
        return DiffusionModel(self.model, self.chat.pad_id, "loop").eval()


@pytest.fixture
def job(tiny_bert: Path, tmp_path: Path) -> Job:
    """A job whose data has an eval split of its own."""
    (tmp_path / "data").mkdir()
    rows = [{**row, "text": f"{row['prompt']} {row['response']}"} for row in pairs()]
    write_rows(tmp_path / "data" / "train.jsonl", rows[:12])
    file = write_rows(tmp_path / "data" / "eval.jsonl", rows[12:])
    values = {"model_name": str(tiny_bert), "dataset_name": str(file.parent), "max_length": 64}
    return Job(values, file, load_model(str(tiny_bert)), ChatFormat(load_tokenizer(str(tiny_bert))))


SETTINGS = (
    {},
    {"loss_norm": "masked", "noise_schedule": "cosine", "eos_policy": "single"},
    {"objective": "mlm", "mask_rate": 0.3, "training_stage": "pretrain", "packing": "off"},
    {"t_min": 0.2, "t_max": 0.7, "eos_policy": "batch"},
)


@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_of_the_file_is_that_of_the_run(job: Job, settings: dict[str, Any]) -> None:
    """Both ways to the settings: the run's own parameters, and the facts in the model's folder."""
    params = parse(job.values | settings).params
    prepared = prepare_corpus(params, lambda line: None)
    rules = step_rules(params, prepared.chat)
    run = evaluate(cpu(), job.module, prepared.evaluation, rules, 4)
    facts = diffusion_facts(params, rules)
    for mine in (
        evaluated_as(facts, params.as_json(), job.module.model.config, max_length=64),
        evaluated_as(facts, None, job.module.model.config, max_length=64),
    ):
        held = read_held_out(mine, str(job.file), job.chat, None)
        cpu()
        found = held_out_loss(job.module, job.chat, held, lambda: None)
        assert held.rows == run["eval/documents"] == 12
        value, stderr, _ = found.pop("loss")
        assert value == pytest.approx(run["eval/loss"], rel=1e-5)
        assert stderr is not None
        assert 1.96 * stderr == pytest.approx(run["eval/loss_ci95"], rel=1e-4)
        buckets = {name for name in run if name.startswith("eval/loss_t")}
        assert {f"eval/{name}" for name in found} == buckets
        for name, (nll, _, masked) in found.items():
            assert nll == pytest.approx(run[f"eval/{name}"], rel=1e-5)
            assert masked > 0


def test_bucket_of_one_document_has_no_interval(job: Job) -> None:
    params = parse(job.values).params
    held = read_held_out(params, str(job.file), job.chat, 1)
    found = held_out_loss(job.module, job.chat, held, lambda: None)
    assert len(held.documents) == 1
    assert held.rows == 12
    assert all(stderr is None for _, stderr, _ in found.values())
    assert all(math.isfinite(value) for value, _, _ in found.values())


def test_model_of_another_tool_is_evaluated_by_its_family(job: Job) -> None:
    params = evaluated_as(ModelFacts(), None, tiny_config("Dream"), max_length=64)
    assert (params.training_method, params.max_length) == ("dream", 64)


def test_file_without_usable_rows_is_refused(job: Job, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "e.jsonl", [{"prompt": "a", "response": ""}])
    params = parse(job.values).params
    with pytest.raises(JobError, match=r"tasks: expected rows to evaluate, .*empty response"):
        read_held_out(params, str(file), job.chat, None)
