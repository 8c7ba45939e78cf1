"""Likelihood of block models: by enumeration, by the sampler's own logits, batched as single."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from helpers.tiny import CLS, MASK, PAD, VOCABULARY, tiny_model

from plugin.models.configuration import set_attention
from plugin.models.diffusion import DiffusionModel, Predictor
from plugin.run.facts import BlockFacts
from plugin.sampling.block_likelihood import block_likelihoods, scored_blocks
from plugin.sampling.likelihood import (
    ESTIMATORS,
    Canvas,
    Likelihood,
    LikelihoodSettings,
    ScoreRequest,
    Scores,
)
from plugin.sampling.scores import ModelScores

WORDS, HIDDEN = 4, 4  # words of the table model, and its mask
BORDER = 9  # between the clean tokens and the noisy block in what it sees
PLAIN = BlockFacts(size=3)
CONTEXT = (0, 1, 2, 3)
TEXT = (2, 0, 1, 3, 3, 0)  # places 4 to 9: blocks of 2, 3 and 1 of them on a grid of 3
FACTS = [
    BlockFacts(size=3, clean_context=context, shift=shift)
    for context, shift in itertools.product(("block", "causal"), (False, True))
]


@cache
def table(seen: tuple[int, ...], place: int) -> np.ndarray:
    """Return the probabilities [WORDS] of a token, of those that the table model sees."""
    rows = np.random.default_rng([place, *seen]).random(WORDS) ** 3
    return rows / rows.sum()


def table_scores(canvases: Sequence[Canvas]) -> list[Scores]:
    """Read rows as a model does: a noisy token sees its copy and the clean ones below its limit."""
    found = []
    for one in canvases:
        row = one.copies
        assert row is not None
        probabilities = []
        for place in one.masked.tolist():
            clean = (row.copy == 0) & (row.position < row.limit[place])
            own = row.copy == row.copy[place]
            assert row.copy[place]
            seen = (*one.noisy[clean].tolist(), BORDER, *one.noisy[own].tolist())
            probabilities.append(table(seen, int(row.position[place])))
        true = one.ids[row.position[one.masked]]
        rows = np.array(probabilities)
        found.append(
            Scores(
                np.log(rows[np.arange(true.size), true]),
                np.log(rows.max(-1)),
                rows.argmax(-1) == true,
            )
        )
    return found


def request(text: Sequence[int] = TEXT, draw: int = 0, **how: bool) -> ScoreRequest:
    context = np.array(CONTEXT, np.int32)
    words = np.array(text, np.int32)
    return ScoreRequest(context=context, continuation=words, draw=(draw,), **how)


def scored(
    requests: Sequence[ScoreRequest], size: int = 3, tokens: int = 4096, **how: object
) -> list[Likelihood]:
    settings = LikelihoodSettings(**how)  # pyright: ignore[reportArgumentType]
    found = dict(
        block_likelihoods(
            table_scores, requests, settings, BlockFacts(size=size), HIDDEN, tokens=tokens
        )
    )
    return [found[number] for number in range(len(requests))]


def log_p(block: Sequence[int], masked: Sequence[int], place: int) -> float:
    """Return the table model's log-probability of the true token at a place of a block."""
    text = [*CONTEXT, *TEXT]
    shown = [HIDDEN if other in masked else text[other] for other in block]
    return math.log(table((*text[: block[0]], BORDER, *shown), place)[text[place]])


BLOCKS = {3: [(3, 4, 5), (6, 7, 8), (9,)], 1: [(place,) for place in range(4, 10)]}


def enumerated(size: int) -> float:
    """Return the bound: of each block the mean over counts and over masks of each count."""
    total = 0.0
    for block in BLOCKS[size]:
        places = [place for place in block if place >= len(CONTEXT)]
        for count in range(1, len(places) + 1):
            masks = list(itertools.combinations(places, count))
            for masked in masks:
                chance = 1 / len(masks) / len(places)
                weight = len(places) / count
                total += chance * weight * sum(log_p(block, masked, one) for one in masked)
    return total


def test_scored_blocks_lie_on_the_documents_grid() -> None:
    assert [places.tolist() for places in scored_blocks(4, 10, 3)] == [[4, 5], [6, 7, 8], [9]]
    assert [places.tolist() for places in scored_blocks(6, 8, 3)] == [[6, 7]]
    assert [places.tolist() for places in scored_blocks(1, 4, 16)] == [[1, 2, 3]]


def test_draws_are_unbiased_and_spread_as_they_say() -> None:
    found = scored([request(draw=draw) for draw in range(300)], draws=32)
    values = [one.value for one in found]
    spread = np.std(values, ddof=1)
    assert np.mean(values) == pytest.approx(enumerated(3), abs=4 * spread / math.sqrt(300))
    assert spread > 0.01
    claimed = math.sqrt(np.mean([one.stderr**2 for one in found]))  # pyright: ignore[reportOptionalOperand]
    assert claimed == pytest.approx(spread, rel=0.15)
    assert {(one.nfe, one.tokens) for one in found} == {(32, 6)}
    (single,) = scored([request()], draws=1)
    assert single.stderr is None


def test_blocks_of_one_token_are_exact_with_one_draw() -> None:
    (found,) = scored([request()], size=1)
    exact = sum(log_p(block, block, block[0]) for block in BLOCKS[1])
    assert found == Likelihood(value=found.value, stderr=0.0, tokens=6, nfe=1)
    assert found.value == pytest.approx(exact, abs=1e-9)
    assert enumerated(1) == pytest.approx(exact, abs=1e-9)
    for estimator in ("chain_rule", "confidence"):
        (other,) = scored([request()], size=1, estimator=estimator)
        assert other.value == pytest.approx(exact, abs=1e-9)


def test_chain_rule_hides_the_rest_of_the_block_alone() -> None:
    (found,) = scored([request()], estimator="chain_rule")
    expected = sum(
        log_p(block, block[number:], place)
        for block in BLOCKS[3]
        for number, place in enumerate(block)
        if place >= len(CONTEXT)
    )
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert (found.stderr, found.nfe, found.tokens) == (0.0, 6, 6)


def test_chain_rule_probabilities_of_all_texts_sum_to_1() -> None:
    every = [request(text) for text in itertools.product(range(WORDS), repeat=4)]
    total = sum(math.exp(one.value) for one in scored(every, estimator="chain_rule"))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_confidence_reveals_in_each_block_the_surest_first() -> None:
    text, total = [*CONTEXT, *TEXT], 0.0
    for block in BLOCKS[3]:
        left = [place for place in block if place >= len(CONTEXT)]
        while left:
            shown = [HIDDEN if other in left else text[other] for other in block]
            seen = (*text[: block[0]], BORDER, *shown)
            surest = max(left, key=lambda place: table(seen, place).max())
            total += log_p(block, left, surest)
            left.remove(surest)
    (found,) = scored([request()], estimator="confidence")
    assert found.value == pytest.approx(total, abs=1e-9)
    assert found.nfe == 3, "blocks are revealed side by side"


def test_greedy_is_true_for_what_greedy_decoding_writes() -> None:
    written = list(CONTEXT)
    for size in (2, 3, 1):
        block = [*written[len(written) // 3 * 3 :], *[HIDDEN] * size]
        begin = len(written) // 3 * 3
        while HIDDEN in block:
            seen = (*written[:begin], BORDER, *block)
            rows = {
                place: table(seen, begin + place)
                for place, word in enumerate(block)
                if word == HIDDEN
            }
            surest = max(rows, key=lambda place: rows[place].max())
            block[surest] = int(rows[surest].argmax())
        written = [*written[:begin], *block]
    right = written[len(CONTEXT) :]
    wrong = [*right[:-1], (right[-1] + 1) % WORDS]
    for estimator in ESTIMATORS:
        found = scored(
            [request(right, greedy=True), request(wrong, greedy=True)], estimator=estimator, draws=8
        )
        assert [one.greedy for one in found] == [True, False]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_of_any_length_give_the_same_values(estimator: str) -> None:
    """A budget of 1 token leaves one copy a row; a large one shares the clean copy among many."""
    requests = [request(), request((1, 1), 1), request((3,), 2)]
    one, many = (
        scored(requests, tokens=tokens, estimator=estimator, draws=6) for tokens in (1, 4096)
    )
    assert [each.value for each in one] == pytest.approx([each.value for each in many], abs=1e-9)


def test_rows_share_clean_tokens_and_stay_within_their_budget() -> None:
    sizes: list[int] = []

    def score(canvases: Sequence[Canvas]) -> list[Scores]:
        sizes.extend(one.noisy.size for one in canvases)
        return table_scores(canvases)

    settings = LikelihoodSettings(estimator="chain_rule")
    list(block_likelihoods(score, [request()], settings, PLAIN, HIDDEN, tokens=16))
    # both copies of the first block and one of the second behind 6 clean tokens; the other two of
    # the second and the single token of the last behind 9
    assert sorted(sizes) == [6 + 3 * 3, 9 + 2 * 3 + 1]
    sizes.clear()
    list(block_likelihoods(score, [request()], settings, PLAIN, HIDDEN, tokens=4096))
    assert sizes == [9 + 2 * 3 + 3 * 3 + 1]


# --- a model


def model_of(block: BlockFacts, family: str = "llama") -> torch.nn.Module:
    model = tiny_model(family, seed=6)
    set_attention(model.config, "block", block)
    return model


def texts(*sizes: tuple[int, int]) -> list[ScoreRequest]:
    rng = np.random.default_rng(2)
    return [
        ScoreRequest(
            context=np.array([CLS, *rng.integers(5, VOCABULARY, context - 1)], np.int32),
            continuation=rng.integers(5, VOCABULARY, tokens).astype(np.int32),
            draw=(number,),
        )
        for number, (context, tokens) in enumerate(sizes)
    ]


def of_model(
    model: torch.nn.Module,
    requests: Sequence[ScoreRequest],
    block: BlockFacts,
    tokens: int = 512,
    **how: object,
) -> list[Likelihood]:
    settings = LikelihoodSettings(**how)  # pyright: ignore[reportArgumentType]
    score = ModelScores(DiffusionModel(model, PAD, "loop").eval(), settings, MASK)
    found = dict(block_likelihoods(score, requests, settings, block, MASK, tokens=tokens))
    return [found[number] for number in range(len(requests))]


def chain(model: torch.nn.Module, one: ScoreRequest, size: int) -> float:
    """Return the chain rule by the sampler's own forwards, the mask token left out."""
    predict = Predictor(model).with_blocks(size)
    ids, total = np.concatenate([one.context, one.continuation]), 0.0
    for place in range(one.context.size, ids.size):
        end = min(ids.size, (place // size + 1) * size)
        canvas = torch.from_numpy(ids[:end].astype(np.int64))[None]
        canvas[0, place:] = MASK
        real = torch.ones_like(canvas, dtype=torch.bool)
        logits = predict(canvas, real, torch.tensor([[0, place]]))[0]
        logits[MASK] = -torch.inf
        total += float(logits.log_softmax(-1)[ids[place]])
    return total


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("block", FACTS, ids=str)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_chain_rule_is_that_of_the_samplers_forwards(
    family: str, block: BlockFacts, size: int
) -> None:
    """At any size of blocks, whatever the model's own; with one token a block every way is exact."""
    model = model_of(block, family)
    requests = texts((5, 9), (1, 4), (6, 1), (3, 6))
    expected = [chain(model, one, size) for one in requests]
    sized = block.model_copy(update={"size": size})
    ways = ESTIMATORS if size == 1 else ("chain_rule",)
    for estimator in ways:
        found = of_model(model, requests, sized, estimator=estimator)
        assert [one.value for one in found] == pytest.approx(expected, abs=2e-5)
        assert {one.stderr for one in found} == {0.0}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batched_values_equal_single_values(estimator: str) -> None:
    model = model_of(PLAIN)
    requests = texts((5, 9), (1, 4), (6, 1), (3, 6), (12, 3))
    together = of_model(model, requests, PLAIN, estimator=estimator, draws=8)
    for one, request in zip(together, requests, strict=True):
        (alone,) = of_model(model, [request], PLAIN, 24, estimator=estimator, draws=8)
        assert alone.value == pytest.approx(one.value, abs=2e-5)
        assert (alone.nfe, alone.tokens) == (one.nfe, one.tokens)
