"""The loop on a tiny model: splits, a reference step in torch, skips, stops, non-finite values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.tiny import (
    CLS,
    PAD,
    SEP,
    assert_same_vector,
    cpu,
    random_documents,
    rules,
    slots,
    steps_of,
    tiny_model,
    train_tiny,
    weights,
)
from torch.nn import functional as F

from plugin.base.errors import JobError
from plugin.data.documents import Builder, Documents
from plugin.training.loop import Progress, Requests, Verdict
from plugin.training.step import build_step

DOCUMENTS = random_documents(20)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_eight_documents_together_or_in_pairs_give_one_trace(family: str) -> None:
    runs = {}
    for batch_size in (8, 2, 3):
        model = tiny_model(family)
        runs[batch_size] = train_tiny(
            cpu(), model, steps_of(DOCUMENTS, rules(), step_size=8, batch_size=batch_size), steps=6
        )
    assert runs[8].losses[-1] < 0.8 * runs[8].losses[0], "the updates matter"
    for batch_size in (2, 3):
        assert runs[batch_size].losses == pytest.approx(runs[8].losses, rel=2e-5)
        norms = [[log["grad_norm"] for log in runs[size].logs] for size in (8, batch_size)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_no_gradient_is_left_for_the_next_step() -> None:
    make = steps_of(DOCUMENTS, rules(), step_size=8, batch_size=3)

    def descend(model: torch.nn.Module, first: int, steps: int) -> None:
        plain = torch.optim.SGD(model.parameters(), lr=0.1)
        train_tiny(cpu(), model, lambda step: make(first + step), steps=steps, optimizer=plain)
        assert all(parameter.grad is None for parameter in model.parameters())

    once, twice = tiny_model("bert"), tiny_model("bert")
    descend(once, 0, 2)
    descend(twice, 0, 1)
    descend(twice, 1, 1)
    assert torch.equal(weights(once), weights(twice))


def test_a_run_repeats_itself_to_the_last_bit() -> None:
    traces, ends = [], []
    for _ in range(2):
        model = tiny_model("bert")
        traces.append(
            train_tiny(
                cpu(), model, steps_of(DOCUMENTS, rules(), step_size=8, batch_size=4), steps=3
            ).losses
        )
        ends.append(weights(model))
    assert traces[0] == traces[1]
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("norm", ["token", "sequence"])
@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_an_update_is_the_one_written_in_plain_torch(norm: str, limit: float) -> None:
    """The reference has a padded rectangle with its attention mask, full logits, one division by
    the global count, clipping by hand and plain descent.
    """
    how, model = rules(norm=norm), tiny_model("bert")
    start, chosen = weights(model), slots(8, 20)
    (micro_batch,) = build_step(chosen, DOCUMENTS, how, batch_size=8).micro_batches
    rows, columns = 8, micro_batch.batch.longest
    ids, true = torch.full((rows, columns), PAD), torch.full((rows, columns), PAD)
    real, weight = torch.zeros(rows, columns, dtype=torch.long), torch.zeros(rows, columns)
    divisor = 0.0
    for row, (index, one) in enumerate(
        zip(micro_batch.documents, micro_batch.corruptions, strict=True)
    ):
        document, size = DOCUMENTS[index], one.noisy.size
        ids[row, :size], true[row, :size] = torch.tensor(one.noisy), torch.tensor(document.ids)
        real[row, :size] = 1
        supervised = int(document.supervised.sum())
        weight[row, torch.tensor(one.masked)] = (
            1 / one.levels.mean_t / (supervised if norm == "sequence" else 1)
        )
        divisor += 1 if norm == "sequence" else supervised
    logits = model(input_ids=ids, attention_mask=real).logits
    nll = F.cross_entropy(logits.flatten(0, 1), true.flatten(), reduction="none").view(
        rows, columns
    )
    loss = (nll * weight).sum() / divisor
    loss.backward()
    wanted = torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )
    norm_before = wanted.norm().item()
    assert norm_before > 1, "or clipping to 0.5 does nothing"
    if limit:
        wanted = wanted * (limit / norm_before)
    model.zero_grad()

    for batch_size in (8, 3):
        model = tiny_model("bert")
        plain = torch.optim.SGD(model.parameters(), lr=1.0)
        make = steps_of(DOCUMENTS, how, step_size=8, batch_size=batch_size)
        run = train_tiny(cpu(), model, make, steps=1, optimizer=plain, max_grad_norm=limit)
        assert run.losses == [pytest.approx(loss.item(), rel=1e-5)]
        assert run.logs[0]["grad_norm"] == pytest.approx(norm_before, rel=1e-5)
        assert_same_vector(
            start - weights(model), wanted, 1e-4
        )  # a difference of weights has few exact digits


def barely_masked(step_with_masks: int) -> object:
    """Make steps at times so early that nothing is masked, except in one step."""
    builder = Builder()
    builder.add(np.array([CLS, 9, SEP, SEP], np.int32), np.arange(4) == 3, 3, "r:1")
    documents = builder.build()
    early, late = rules(t_max=0.0011), rules(t_min=0.98)

    def make(step: int) -> object:
        return steps_of(
            documents, late if step == step_with_masks else early, step_size=1, batch_size=1
        )(step)

    return make


@pytest.mark.parametrize("masked_step", [0, 1])
def test_a_step_with_nothing_masked_is_skipped_and_counted(masked_step: int) -> None:
    model = tiny_model("bert")
    seen = [weights(model)]
    make = barely_masked(masked_step)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)

    def asked(step: int) -> Requests:
        seen.append(weights(model))
        return Requests()

    run = train_tiny(cpu(), model, make, steps=3, optimizer=optimizer, asked=asked)
    after = [*seen[2:], weights(model)]
    for step, (before, then) in enumerate(zip(seen[1:], after, strict=True)):
        assert torch.equal(before, then) == (step != masked_step), (
            "not even weight decay moves a skipped step"
        )
    assert [log["skipped_steps"] for log in run.logs] == [
        float(step != masked_step) for step in range(3)
    ]
    assert run.finished[2].skipped == 2
    assert [loss > 0 for loss in run.losses] == [step == masked_step for step in range(3)]


def poisoned() -> tuple[torch.nn.Module, Documents]:
    """Return a model with a broken embedding of word 39, and documents, one with it in its prompt."""
    model = tiny_model("bert", tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[39] = math.nan
    clean, builder = random_documents(5, vocabulary=39), Builder()
    for index in range(5):
        one = clean[index]
        ids = (
            np.where(np.arange(one.ids.size) == 1, 39, one.ids).astype(np.int32)
            if index == 2
            else one.ids
        )
        builder.add(ids, one.supervised, one.prompt, f"r:{index}")
    return model, builder.build()


@pytest.mark.parametrize("batch_size", [5, 2])
def test_non_finite_loss_ends_the_run_and_names_the_document(batch_size: int) -> None:
    """The run ends before the update."""
    model, documents = poisoned()
    before, how = weights(model), rules(t_min=0.6)
    make = steps_of(documents, how, step_size=5, batch_size=batch_size)
    with pytest.raises(JobError) as caught:
        train_tiny(cpu(), model, make, steps=3)
    (problem,) = caught.value.problems
    assert problem.code == 6
    step = steps_of(documents, how, step_size=5, batch_size=5)(0)
    (one,) = [
        one
        for index, one in zip(
            step.micro_batches[0].documents, step.micro_batches[0].corruptions, strict=True
        )
        if index == 2
    ]
    assert one.masked.size > 0
    assert (
        f"document 2 (t {one.levels.mean_t:.4f}, {one.masked.size} of {one.noisy.size} tokens masked)"
        in problem.got
    )
    assert problem.got.count("document ") == 1, "and only that one"
    assert "step 1" in problem.got
    assert torch.equal(weights(model).nan_to_num(9), before.nan_to_num(9))


def test_non_finite_gradient_of_a_finite_loss_ends_the_run() -> None:
    model = tiny_model("bert")
    before = weights(model)
    model.get_input_embeddings().weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(JobError) as caught:
        train_tiny(cpu(), model, steps_of(DOCUMENTS, rules(), step_size=4, batch_size=4), steps=2)
    assert caught.value.code == 6
    assert "gradient norm" in caught.value.problems[0].got
    assert torch.equal(weights(model), before)


def test_stop_ends_the_run_after_the_step_logged_and_saved() -> None:
    make = steps_of(DOCUMENTS, rules(), step_size=4, batch_size=4)
    run = train_tiny(
        cpu(),
        tiny_model(),
        make,
        steps=9,
        eval_every=3,
        asked=lambda step: Requests(stop=step == 3),
    )
    done, stopped, _ = run.finished
    assert (done, stopped, run.saved, len(run.losses)) == (3, True, [3], 3)
    assert run.logs[-1]["step"] == 3
    assert run.evaluated == [], "whoever stops does not want to wait for an evaluation"


def test_a_stop_in_the_last_step_is_a_finished_run() -> None:
    make = steps_of(DOCUMENTS, rules(), step_size=4, batch_size=4)
    run = train_tiny(
        cpu(), tiny_model(), make, steps=2, asked=lambda step: Requests(stop=step == 2)
    )
    assert run.finished[:2] == (2, False)
    assert run.saved == [2]


def test_best_weights_are_saved_when_evaluated() -> None:
    make = steps_of(DOCUMENTS, rules(), step_size=4, batch_size=4)
    run = train_tiny(
        *(cpu(), tiny_model(), make),
        steps=5,
        eval_every=2,
        judged=lambda step: Verdict(save=step == 2),
    )
    assert run.evaluated == [2, 4, 5]
    assert run.saved == [2, 5]


def test_exhausted_patience_ends_a_saved_complete_run() -> None:
    make = steps_of(DOCUMENTS, rules(), step_size=4, batch_size=4)
    run = train_tiny(
        *(cpu(), tiny_model(), make),
        steps=9,
        eval_every=2,
        judged=lambda step: Verdict(end=step == 4),
    )
    assert run.finished[:2] == (4, False)
    assert (run.evaluated, run.saved) == ([2, 4], [4])


@pytest.mark.parametrize(("done", "steps"), [(4, 6), (3, 3)], ids=["due", "last"])
def test_owed_evaluation_of_a_resumed_run_is_judged(done: int, steps: int) -> None:
    """A run stopped at step 4 resumes with its evaluation, and its checkpoint is saved again.

    So does a run that is shortened to the steps it has made.
    """
    make = steps_of(DOCUMENTS, rules(), step_size=4, batch_size=4)
    run = train_tiny(
        *(cpu(), tiny_model(), make),
        steps=steps,
        eval_every=2,
        judged=lambda step: Verdict(save=True, end=True),
        at=Progress(done=done),
    )
    assert run.finished[:2] == (done, False)
    assert (run.evaluated, run.saved) == ([done], [done])


def test_hooks_run_when_due_or_requested() -> None:
    """The hooks save, sample and evaluate."""

    def asked(step: int) -> Requests:
        return Requests(save=step == 2, sample=step == 5)

    make = steps_of(DOCUMENTS, rules(), step_size=4, batch_size=4)
    run = train_tiny(cpu(), tiny_model(), make, steps=7, eval_every=3, save_every=4, asked=asked)
    assert run.saved == [2, 4, 7]
    assert run.sampled == [5]
    assert run.evaluated == [3, 6, 7]
    assert run.finished[:2] == (7, False)


def test_logs_say_what_a_step_did() -> None:
    make = steps_of(DOCUMENTS, rules(), step_size=8, batch_size=3)
    run = train_tiny(cpu(), tiny_model(), make, steps=3, rates=lambda step: 1 / (step + 1))
    assert [log["learning_rate"] for log in run.logs] == pytest.approx([1e-2, 1e-2 / 2, 1e-2 / 3])
    assert [log["loss"] for log in run.logs] == pytest.approx(run.losses)
    totals = run.finished[2]
    assert totals.tokens == sum(make(step).tokens for step in range(3))
    assert totals.supervised == sum(make(step).supervised for step in range(3))
    assert all(0 <= log["masked_accuracy"] <= 1 for log in run.logs)
