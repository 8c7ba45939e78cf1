"""Rules of a step under objective mlm: loss as transformers computes it, layouts, evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import (
    PAD,
    SPECIAL,
    VOCABULARY,
    cpu,
    gradient,
    in_order,
    random_documents,
    tiny_model,
    word_tokenizer,
)

from plugin.assembly.rules import diffusion_facts, step_rules
from plugin.config.params import Params
from plugin.data.chat import ChatFormat
from plugin.data.packing import PADDED, Layout
from plugin.models.diffusion import DiffusionModel
from plugin.training.evaluate import evaluate
from plugin.training.step import Step, StepRules, build_step

DOCUMENTS = random_documents(12, longest=20)
WORDS = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]


def params_of(**values: Any) -> Params:
    return Params.model_validate({"objective": "mlm", "training_stage": "pretrain", **values})


def rules_of(**values: Any) -> StepRules:
    return step_rules(params_of(**values), ChatFormat(word_tokenizer(WORDS)))


def step_of(layout: Layout = PADDED, **values: Any) -> Step:
    return build_step(
        in_order(DOCUMENTS), DOCUMENTS, rules_of(**values), batch_size=12, layout=layout
    )


@pytest.mark.parametrize("method", ["bert", "llada", "dream"])
def test_auto_norm_of_mlm_is_the_masked_tokens(method: str) -> None:
    assert rules_of(training_method=method).loss.norm == "masked"
    assert rules_of(training_method=method, loss_norm="token").loss.norm == "token"


def test_options_of_diffusion_leave_mlm_alone() -> None:
    unused = {"noise_schedule": "cosine", "t_min": 0.5, "t_max": 0.9, "complementary": True}
    plain, other = step_of(), step_of(**unused)
    assert len(other.lengths) == len(DOCUMENTS), "no copies"
    assert torch.equal(plain.micro_batches[0].batch.ids, other.micro_batches[0].batch.ids)
    assert torch.equal(plain.micro_batches[0].batch.weight, other.micro_batches[0].batch.weight)


def test_random_tokens_are_ordinary_ones() -> None:
    ordinary = rules_of(mlm_replace="bert").noise.ordinary
    assert ordinary is not None
    assert ordinary.tolist() == list(range(len(SPECIAL), VOCABULARY))
    assert rules_of().noise.ordinary is None


@pytest.mark.parametrize("replace", ["mask", "bert"])
@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_mlm_loss_is_that_of_transformers(family: str, replace: str) -> None:
    """transformers' masked-LM loss with labels -100 elsewhere, padded rows, the same tokens."""
    model = tiny_model(family)
    step = step_of(mlm_replace=replace)
    (micro_batch,) = step.micro_batches
    batch, longest = micro_batch.batch, max(step.lengths)
    shape = (len(DOCUMENTS), longest)
    ids, seen = torch.full(shape, PAD), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    starts = batch.cu_seqlens[:-1]
    for row, one in enumerate(micro_batch.corruptions):
        size, true = one.noisy.size, DOCUMENTS[micro_batch.documents[row]].ids.astype(np.int64)
        ids[row, :size] = torch.from_numpy(one.noisy.astype(np.int64))
        seen[row, :size] = 1
        labels[row, one.masked] = torch.from_numpy(true[one.masked])
        chosen = (batch.masked >= starts[row]) & (batch.masked < starts[row] + size)
        assert torch.equal(batch.target[chosen], labels[row, one.masked]), "the original ids"
    plain = model(input_ids=ids, attention_mask=seen, labels=labels).loss
    ours = step.loss(DiffusionModel(model, PAD)(batch)) / step.count
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    assert step.count == int((labels >= 0).sum())
    if replace == "bert":
        assert (batch.ids[batch.masked] == batch.target).any(), "a chosen token stays visible"


@pytest.mark.parametrize("family", ["modernbert", "llada", "Dream"])
def test_packed_mlm_is_padded_mlm(family: str) -> None:
    found = []
    for layout, backend in ((PADDED, None), (Layout(True, 512), "loop")):
        model = tiny_model(family)
        step = step_of(layout, mlm_replace="bert")
        module = DiffusionModel(model, PAD, backend)
        for micro_batch in step.micro_batches:
            (step.loss(module(micro_batch.batch)) / step.count).backward()
        found.append(gradient(module))
    assert found[0].norm() > 0
    assert (found[0] - found[1]).norm() <= 1e-5 * found[0].norm()


def test_mlm_is_evaluated_at_its_mask_rate_alone() -> None:
    module = DiffusionModel(tiny_model("bert"), PAD)
    how = rules_of(mask_rate=0.45, mlm_replace="bert")
    first, second = (evaluate(cpu(), module, DOCUMENTS, how, 8) for _ in range(2))
    assert first == second
    buckets = [name for name in first if name.startswith("eval/loss_t")]
    assert buckets == ["eval/loss_t40_50"]
    assert first["eval/loss"] == pytest.approx(first["eval/loss_t40_50"], rel=1e-6)
    assert evaluate(cpu(), module, DOCUMENTS, rules_of(mask_rate=0.45), 8) != first


def test_facts_of_mlm_name_its_objective() -> None:
    params = params_of(mask_rate=0.2, mlm_replace="bert", training_method="dream")
    facts = diffusion_facts(params, rules_of(mask_rate=0.2)).content()
    wanted = {"objective": "mlm", "mask_rate": 0.2, "mlm_replace": "bert"}
    assert {name: facts[name] for name in wanted} == wanted
    assert (facts["loss_norm"], facts["loss_weight"]) == ("masked", "uniform")
    assert not {"noise_schedule", "time_range"} & set(facts)
    other = Params.model_validate({})
    of_mdlm = diffusion_facts(other, step_rules(other, ChatFormat(word_tokenizer(["a"])))).content()
    assert of_mdlm["objective"] == "mdlm"
    assert not {"mask_rate", "mlm_replace"} & set(of_mdlm)
