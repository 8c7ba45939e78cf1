"""Likelihood: against an enumeration of all masks, batched as single, every family and estimator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from helpers.tiny import CLS, FAMILIES, MASK, PAD, SEP, tiny_model

from plugin.models.diffusion import DiffusionModel
from plugin.sampling.likelihood import (
    ESTIMATORS,
    REPLICATES,
    Canvas,
    Likelihood,
    LikelihoodSettings,
    ScoreRequest,
    Scores,
    likelihoods,
    mask_counts,
)
from plugin.sampling.scores import ModelScores

WORDS, LENGTH = 4, 4
HIDDEN = WORDS  # the mask of the table model


def table(noisy: Sequence[int]) -> np.ndarray:
    """Return the probabilities [LENGTH, WORDS] that the table model gives for a canvas."""
    return _table(tuple(noisy))


@cache
def _table(noisy: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([1, *noisy])
    rows = rng.random((LENGTH, WORDS)) ** 3
    return rows / rows.sum(-1, keepdims=True)


def table_scores(canvases: Sequence[Canvas]) -> list[Scores]:
    found = []
    for one in canvases:
        rows = table(one.noisy[1:].tolist())[one.masked - 1]
        true = one.ids[one.masked]
        found.append(
            Scores(
                np.log(rows[np.arange(true.size), true]),
                np.log(rows.max(-1)),
                rows.argmax(-1) == true,
            )
        )
    return found


def enumerated(text: Sequence[int]) -> float:
    """Return the bound over all masks: the mean over counts and over masks of each count."""
    total = 0.0
    for count in range(1, LENGTH + 1):
        masks = list(itertools.combinations(range(LENGTH), count))
        for hidden in masks:
            noisy = [HIDDEN if n in hidden else word for n, word in enumerate(text)]
            log_p = sum(math.log(table(noisy)[n][text[n]]) for n in hidden)
            total += LENGTH / count * log_p / len(masks) / LENGTH
    return total


def request(text: Sequence[int], draw: int = 0, **how: bool) -> ScoreRequest:
    words = np.array(text, np.int32)
    return ScoreRequest(context=np.array([9], np.int32), continuation=words, draw=(draw,), **how)


def scored(requests: Sequence[ScoreRequest], tokens: int = 256, **settings: object) -> list:
    how = LikelihoodSettings(**settings)  # pyright: ignore[reportArgumentType]
    found = dict(likelihoods(table_scores, requests, how, HIDDEN, tokens=tokens))
    return [found[number] for number in range(len(requests))]


TEXTS = ((0, 1, 2, 3), (3, 3, 0, 1), (2, 2, 2, 2))


@pytest.mark.parametrize("text", TEXTS)
def test_monte_carlo_is_within_one_percent_of_enumeration(text: tuple[int, ...]) -> None:
    (found,) = scored([request(text)], draws=20_000, tokens=16_384)
    assert found.value == pytest.approx(enumerated(text), rel=0.01)
    assert found.nfe == 20_000


@pytest.mark.parametrize("text", TEXTS)
def test_chain_rule_is_within_1e_5_of_the_product(text: tuple[int, ...]) -> None:
    (found,) = scored([request(text)], estimator="chain_rule")
    exact = sum(
        math.log(table([*text[:n], *[HIDDEN] * (LENGTH - n)])[n][text[n]]) for n in range(LENGTH)
    )
    assert found.value == pytest.approx(exact, abs=1e-5)
    assert (found.stderr, found.nfe, found.tokens) == (0.0, LENGTH, LENGTH)


def test_chain_rule_probabilities_of_all_texts_sum_to_1() -> None:
    every = [request(text) for text in itertools.product(range(WORDS), repeat=LENGTH)]
    total = sum(math.exp(one.value) for one in scored(every, estimator="chain_rule"))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_confidence_reveals_true_tokens_the_surest_first() -> None:
    text, noisy, log_p = TEXTS[0], [HIDDEN] * LENGTH, 0.0
    while HIDDEN in noisy:
        rows = table(noisy)
        hidden = [n for n in range(LENGTH) if noisy[n] == HIDDEN]
        surest = max(hidden, key=lambda n: rows[n].max())
        log_p += math.log(rows[surest][text[surest]])
        noisy[surest] = text[surest]
    (found,) = scored([request(text)], estimator="confidence")
    assert found.value == pytest.approx(log_p, abs=1e-5)
    assert found.nfe == LENGTH


def test_standard_error_is_the_spread_of_estimates() -> None:
    """Of 200 estimates with other draws; the mean of their squared errors is the variance."""
    found = scored([request(TEXTS[1], draw) for draw in range(200)], tokens=8192)
    values = [one.value for one in found]
    claimed = math.sqrt(np.mean([one.stderr**2 for one in found]))
    assert claimed == pytest.approx(np.std(values, ddof=1), rel=0.15)
    assert np.mean(values) == pytest.approx(enumerated(TEXTS[1]), rel=0.01)


def test_counts_of_a_replicate_are_even() -> None:
    rng = np.random.default_rng(0)
    parts = mask_counts(128, 5, rng)
    assert [part.size for part in parts] == [128 // REPLICATES] * REPLICATES
    for part in parts:
        assert set(np.bincount(part, minlength=6)[1:]) <= {3, 4}, "16 draws of 5 counts"
    many = np.concatenate([one for _ in range(500) for one in mask_counts(3, 7, rng)])
    assert np.bincount(many, minlength=8)[1:] / many.size == pytest.approx([1 / 7] * 7, abs=0.04)


def test_single_token_takes_one_draw_and_is_exact() -> None:
    (found,) = scored([request([2])])
    assert (found.nfe, found.stderr) == (1, 0.0)
    (unknown,) = scored([request(TEXTS[0])], draws=1)
    assert unknown.stderr is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_greedy_is_what_the_surest_first_decoder_writes(estimator: str) -> None:
    written = [HIDDEN] * LENGTH
    while HIDDEN in written:
        rows = table(written)
        hidden = [n for n in range(LENGTH) if written[n] == HIDDEN]
        surest = max(hidden, key=lambda n: rows[n].max())
        written[surest] = int(rows[surest].argmax())
    other = [(written[0] + 1) % WORDS, *written[1:]]
    how = {"estimator": estimator, "draws": 8}
    right, wrong = scored([request(written, greedy=True), request(other, greedy=True)], **how)
    assert (right.greedy, wrong.greedy) == (True, False)


# --- a real model of each family ---------------------------------------------------------------


def texts(count: int, seed: int = 0) -> list[ScoreRequest]:
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        context, continuation = rng.integers(1, 7, 2)
        ids = rng.integers(5, 40, context + continuation).astype(np.int32)
        ids[0] = CLS
        found.append(
            ScoreRequest(context=ids[:context], continuation=ids[context:], draw=(number,))
        )
    return found


def by_model(
    family: str, requests: Sequence[ScoreRequest], tokens: int, backend: str | None, **how: object
) -> list[Likelihood]:
    settings = LikelihoodSettings(**{"draws": 12, **how})  # pyright: ignore[reportArgumentType]
    module = DiffusionModel(tiny_model(family), PAD, backend).eval()
    score = ModelScores(module, settings, MASK)
    found = dict(likelihoods(score, requests, settings, MASK, tokens=tokens))
    return [found[number] for number in range(len(requests))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batched_is_single_packed_or_padded(family: str, estimator: str) -> None:
    requests = texts(5)
    single = [by_model(family, [one], 1, "loop", estimator=estimator)[0] for one in requests]
    for backend in ("loop", "dense", None):
        found = by_model(family, requests, 128, backend, estimator=estimator)
        for one, other in zip(found, single, strict=True):
            assert one.value == pytest.approx(other.value, abs=2e-4)
            assert (one.nfe, one.tokens) == (other.nfe, other.tokens)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["masked", "dropped"])
def test_guided_chain_rule_equals_full_logits(family: str, prompt: str) -> None:
    """The reference: full logits of both canvases, combined, without the mask as an output."""
    model, (one, *_) = tiny_model(family), texts(3, seed=4)
    ids, start = np.concatenate([one.context, one.continuation]), one.context.size
    log_p = 0.0
    for place in range(start, ids.size):
        noisy = torch.tensor(ids[None].astype(np.int64))
        noisy[0, place:] = MASK
        without = noisy.clone()
        without[0, :start] = MASK
        at = place
        if prompt == "dropped":
            without, at = torch.cat([noisy[:, :1], noisy[:, start:]], 1), place - start + 1
        with torch.no_grad():
            un, full = (
                model(input_ids=without).logits[0, at],
                model(input_ids=noisy).logits[0, place],
            )
        logits = un + 1.7 * (full - un)
        logits[MASK] = -torch.inf
        log_p += logits.log_softmax(-1)[ids[place]].item()
    how = {"estimator": "chain_rule", "cfg": 0.7, "cfg_prompt": prompt}
    (found,) = by_model(family, [one], 64, "loop", **how)
    assert found.value == pytest.approx(log_p, abs=1e-4)
    assert found.nfe == 2 * one.continuation.size


def test_causal_model_is_scored_in_one_forward() -> None:
    model, (one, *_) = tiny_model("llada", causal=True), texts(3, seed=5)
    settings = LikelihoodSettings(estimator="next_token")
    score = ModelScores(DiffusionModel(model, PAD, "loop").eval(), settings, MASK)
    ((_, found),) = likelihoods(score, [one], settings, MASK, tokens=64)
    ids = torch.tensor([[*one.context.tolist(), *one.continuation.tolist()]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    logits[:, MASK] = -torch.inf
    start = one.context.size
    true = logits.log_softmax(-1)[torch.arange(start, ids.shape[1]), ids[0, start:]].sum()
    assert found.value == pytest.approx(true.item(), abs=1e-4)
    assert found.nfe == 1


def test_mask_token_takes_no_probability() -> None:
    requests = [
        ScoreRequest(context=np.array([CLS, 7], np.int32), continuation=np.array([word], np.int32))
        for word in (*range(MASK), *range(MASK + 1, 40))
    ]
    total = sum(math.exp(one.value) for one in by_model("bert", requests, 256, "loop"))
    assert total == pytest.approx(1.0, abs=1e-4)
    assert SEP < MASK
