"""Evaluation: fixed noise, mask-probability buckets, a confidence interval worked by hand."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import PAD, alone, cpu, random_documents, rules, tiny_model

from plugin.batch import Batch
from plugin.data.documents import Builder, Documents
from plugin.data.steps import Slot
from plugin.models.diffusion import DiffusionModel
from plugin.models.head import Sums
from plugin.training.evaluate import BUCKETS, EVAL_SEED, BestSoFar, evaluate
from plugin.training.step import build_step

COUNT = 150
DOCUMENTS = random_documents(COUNT)


def scores(
    how: Any = None, batch_size: int = 8, module: Any = None, documents: Documents = DOCUMENTS
) -> dict[str, float]:
    return evaluate(
        cpu(),
        module or DiffusionModel(tiny_model("bert"), PAD),
        documents,
        how or rules(),
        batch_size,
    )


def test_best_so_far_counts_what_is_not_better() -> None:
    best = BestSoFar()
    assert [best.see(loss) for loss in (2.0, 1.5, 1.5, 1.9)] == [True, True, False, False]
    assert best == BestSoFar(1.5, 2)
    assert best.see(1.4)
    assert best == BestSoFar(1.4, 0)


def test_noise_is_fixed_over_evaluations_seeds_and_sampling() -> None:
    first = scores()
    assert scores() == first
    assert scores(rules(seed=99)) == first
    assert scores(rules(t_sampling="iid")) == first
    assert scores(rules(mask_count="exact")) != first, (
        "what changes the objective changes its value"
    )


def test_the_batch_size_is_only_a_layout() -> None:
    assert scores(batch_size=3) == pytest.approx(scores(batch_size=COUNT), rel=1e-5)


@pytest.mark.parametrize("policy", ["block", "batch"])
def test_filling_is_not_up_to_the_batch_size_either(policy: str) -> None:
    """`eos_policy batch` fills to the longest of 64 documents, always the same 64."""
    how = rules(eos_policy=policy, eos_block=4)
    whole = scores(how, batch_size=COUNT)
    assert whole["eval/loss"] != pytest.approx(scores(batch_size=COUNT)["eval/loss"], rel=1e-3), (
        "filled tokens count"
    )
    assert scores(how, batch_size=3) == pytest.approx(whole, rel=1e-5)


class OneOfTwo:
    """Accelerator of rank `rank` of two: keeps what it sends; receives `total`, or what it sent."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, rank: int, total: torch.Tensor | None = None):
        self.process_index, self.total = rank, total
        self.sent = torch.zeros(0)

    def autocast(self) -> Any:
        return contextlib.nullcontext()

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        self.sent = tensor.clone()
        return tensor if self.total is None else self.total


@pytest.mark.parametrize("policy", ["single", "batch"])
def test_two_ranks_know_the_loss_that_one_computes(policy: str) -> None:
    module, how = DiffusionModel(tiny_model("bert"), PAD), rules(eos_policy=policy)
    whole = scores(how, module=module)
    first = [OneOfTwo(rank) for rank in range(2)]
    for one in first:
        evaluate(one, module, DOCUMENTS, how, 8)
    total = first[0].sent + first[1].sent
    assert all(0 < one.sent[-1, 1] < total[-1, 1] for one in first), "each does a part"
    for rank in range(2):
        got = evaluate(OneOfTwo(rank, total), module, DOCUMENTS, how, 8)
        assert got == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    "off",
    [
        {"perbatch_cutoff": True, "resp_cutoff_ratio": 1.0},
        {"complementary": True},
        {"stochastic_length": 1.0},
        {"prompt_drop": 1.0},
    ],
)
def test_what_belongs_to_training_alone_is_off(off: dict[str, Any]) -> None:
    assert scores(rules(**off)) == scores()


@pytest.mark.parametrize("norm", ["token", "sequence"])
def test_loss_and_buckets_equal_those_of_single_documents(norm: str) -> None:
    model = tiny_model("bert")
    metrics = scores(rules(norm=norm), module=DiffusionModel(model, PAD))
    frozen = rules(norm=norm, seed=EVAL_SEED)
    step = build_step(
        [Slot(0, index, index) for index in range(COUNT)], DOCUMENTS, frozen, batch_size=COUNT
    )
    (micro_batch,) = step.micro_batches
    losses = torch.stack(alone(model, DOCUMENTS, micro_batch)).detach().numpy()
    assert metrics["eval/loss"] == pytest.approx(losses.sum() / step.count, rel=1e-5)
    assert metrics["eval/documents"] == COUNT
    for bucket in range(BUCKETS):
        inside = [
            place
            for place, one in enumerate(micro_batch.corruptions)
            if int(one.levels.mean_t * 10) == bucket and one.masked.size
        ]
        assert inside, "stratified times reach every bucket"
        nll = sum(losses[place] / micro_batch.corruptions[place].weight[0] for place in inside)
        masked = sum(micro_batch.corruptions[place].masked.size for place in inside)
        assert metrics[f"eval/loss_t{bucket * 10:02d}_{bucket * 10 + 10:02d}"] == pytest.approx(
            nll / masked, rel=1e-5
        )


def test_a_bucket_is_of_the_mask_probability_not_of_the_time() -> None:
    # cosine: p = cos(pi/2 (1 - t)) in [.891, .951) for t in [.7, .8)
    metrics = scores(rules(schedule="cosine", t_min=0.75, t_max=0.76))
    assert {name for name in metrics if name.startswith("eval/loss_t")} == {"eval/loss_t90_100"}


class Priced(torch.nn.Module):
    """Model with a fixed loss for each document, known by its first token."""

    def __init__(self, prices: dict[int, float]):
        super().__init__()
        self.prices = prices

    def forward(self, batch: Batch) -> Sums:
        first = batch.ids[batch.cu_seqlens[:-1]].tolist()
        cost = torch.tensor([self.prices[token] for token in first])
        return Sums(cost, cost, torch.zeros_like(cost))


def test_the_confidence_interval_of_two_documents_worked_by_hand() -> None:
    """Losses 6 and 6 over 2 and 4 tokens have the mean 12 / 6 = 2.

    Residuals 6 - 2 x 2 = 2 and 6 - 2 x 4 = -2 give sqrt(8) / 6.
    """
    builder = Builder()
    for first, answer in ((10, 2), (11, 4)):
        ids = np.array([first, 3, *[8] * answer], np.int32)
        builder.add(ids, np.arange(ids.size) >= 2, 2, "r")
    for batch_size in (1, 2):
        metrics = scores(
            module=Priced({10: 6.0, 11: 6.0}), documents=builder.build(), batch_size=batch_size
        )
        assert metrics["eval/loss"] == pytest.approx(2.0)
        assert metrics["eval/loss_ci95"] == pytest.approx(1.96 * math.sqrt(8) / 6)


def test_interval_of_a_bucket_is_that_of_its_documents() -> None:
    """Of equal masks the ratio's error is that of a mean: a bucket of one document has none."""
    prices = {10: 4.0, 11: 6.0, 12: 8.0}
    how = rules(t_min=0.34, t_max=0.35, mask_count="exact")

    def of(count: int) -> dict[str, float]:
        builder = Builder()
        for first in [*prices][:count]:
            ids = np.array([first, 3, *[8] * 20], np.int32)
            builder.add(ids, np.arange(ids.size) >= 2, 2, "r")
        return scores(how, module=Priced(prices), documents=builder.build())

    metrics = of(3)
    masked = 6.0 / metrics["eval/loss_t30_40"]  # of a document
    assert metrics["eval/loss_ci95_t30_40"] == pytest.approx(1.96 * math.sqrt(8) / (3 * masked))
    assert "eval/loss_t30_40" in of(1)
    assert "eval/loss_ci95_t30_40" not in of(1)


def test_documents_of_one_price_a_token_leave_no_doubt() -> None:
    documents = random_documents(20)
    uniform = tiny_model("bert")
    for parameter in uniform.parameters():
        torch.nn.init.zeros_(parameter)
    metrics = scores(
        rules(mask_count="exact"), module=DiffusionModel(uniform, PAD), documents=documents
    )
    assert metrics["eval/loss"] == pytest.approx(math.log(40), rel=1e-5)
    assert metrics["eval/loss_ci95"] < 1e-4
    buckets = [value for name, value in metrics.items() if name.startswith("eval/loss_t")]
    assert buckets == pytest.approx([math.log(40)] * 10, rel=1e-5)


def test_evaluating_changes_no_weight_and_leaves_no_gradient() -> None:
    model = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores(module=DiffusionModel(model, PAD))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
