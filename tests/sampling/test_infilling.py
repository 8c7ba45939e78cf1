"""Infilling, guidance, seeds and traces of requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.table_model import table
from helpers.tiny import CLS, FAMILIES, MASK, PAD, SEP, VOCABULARY, tiny_model

from plugin.config.sampler import SamplerSettings
from plugin.models.diffusion import Predictor
from plugin.sampling.generate import generate
from plugin.sampling.guidance import guided
from plugin.sampling.request import DenoisingStep, Request, Vocabulary, merged

WORDS = Vocabulary(MASK, (SEP,), PAD)


def text(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


def test_holes_are_filled_from_both_sides() -> None:
    """Each place is predicted as the mean of its neighbours, once both are known."""

    def middle(row: list[int], place: int) -> tuple[int, float]:
        left, right = row[place - 1], row[place + 1]
        return ((left + right) // 2, 9.0) if MASK not in (left, right) else (left + 2, 1.0)

    settings = SamplerSettings(block_length=2, steps=2)
    ids = text(CLS, 10, MASK, 14, MASK, MASK, 20)
    request = Request(ids=ids, holes=np.array([2, 4, 5]), prompt=1)
    (one,) = generate(table(middle), [request], WORDS, settings)
    assert one.ids.tolist() == [10, 12, 14, 16, 18, 20]
    assert (one.steps, one.nfe) == (3, 3), "blocks of two holes and of one"
    assert ids[2] == MASK, "the request is left as it was"


def test_an_end_or_a_mask_never_fills_a_hole() -> None:
    guess = table(lambda row, place: (SEP if place == 2 else MASK, 99.0))
    request = Request(ids=text(CLS, 10, MASK, MASK, 14), holes=np.array([2, 3]), prompt=1)
    (one,) = generate(guess, [request], WORDS, SamplerSettings())
    assert not {SEP, MASK} & set(one.ids.tolist())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_infillings_and_answers_share_a_batch(family: str, cache: str) -> None:
    predict = Predictor(tiny_model(family, seed=4))
    requests = [
        Request(ids=text(CLS, 9, 11, SEP)),
        Request(
            ids=text(CLS, 9, SEP, 10, MASK, MASK, 20, MASK, 9), holes=np.array([4, 5, 7]), prompt=3
        ),
        Request(ids=text(CLS, 10, 11, 12, 13, SEP)),
    ]
    settings = SamplerSettings(max_new_tokens=6, block_length=2, steps=2, cache=cache)
    together = [one.ids.tolist() for one in generate(predict, requests, WORDS, settings)]
    alone = [generate(predict, [one], WORDS, settings)[0].ids.tolist() for one in requests]
    assert together == alone
    assert (together[1][0], together[1][3], together[1][5]) == (10, 20, 9)


def with_prompt(row: list[int], place: int) -> tuple[int, float]:
    """Predict 20 with the prompt's word 10 in sight and 30 without it."""
    return (20 if 10 in row else 30), 2.0


@pytest.mark.parametrize("prompt", ["masked", "dropped"])
def test_guidance_by_hand(prompt: str) -> None:
    """With (2, 0) for words 20 and 30 and without (0, 2): scale w gives (2 + 2w, -2w)."""
    seen: list[list[int]] = []

    def guess(row: list[int], place: int) -> tuple[int, float]:
        seen.append(row)
        return with_prompt(row, place)

    settings = SamplerSettings(
        max_new_tokens=1, block_length=1, steps=1, cfg=0.5, cfg_prompt=prompt,
        temperature=1.0,
    )  # fmt: skip
    (one,) = generate(table(guess), [Request(ids=text(CLS, 10, SEP))], WORDS, settings)
    hidden = [MASK] * 4 if prompt == "masked" else [CLS, MASK]
    assert seen == [[CLS, 10, SEP, MASK], hidden]
    assert one.nfe == 2
    both = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    assert guided(both, 0.5).tolist() == [[3.0, -1.0]]


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_a_text_without_a_prompt_is_not_guided(cache: str) -> None:
    """In one batch with a request that is."""
    predict = Predictor(tiny_model("llada", seed=4))
    requests = [
        Request(ids=text(CLS, 9, MASK, MASK, 11, SEP), holes=np.array([2, 3]), prompt=0),
        Request(ids=text(CLS, 9, 11, SEP)),
    ]
    settings = SamplerSettings(max_new_tokens=4, block_length=2, steps=2, cfg=1.0, cache=cache)
    plain = replace(settings, cfg=0.0)
    found, unguided = (generate(predict, requests, WORDS, each) for each in (settings, plain))
    assert found[0].ids.tolist() == unguided[0].ids.tolist()
    assert [one.nfe for one in found] == [2, 8]


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_of_scale_zero_is_the_identity(family: str) -> None:
    predict, request = Predictor(tiny_model(family, seed=4)), Request(ids=text(CLS, 9, 11, SEP))
    tiny = SamplerSettings(max_new_tokens=8, block_length=4, steps=4, cfg=1e-9)
    plain = SamplerSettings(max_new_tokens=8, block_length=4, steps=4)
    (a,), (b,) = (generate(predict, [request], WORDS, each) for each in (tiny, plain))
    assert a.ids.tolist() == b.ids.tolist()
    assert (a.nfe, b.nfe) == (2 * b.nfe, b.nfe)


def test_seeds_and_draw_numbers_name_the_answer() -> None:
    predict = Predictor(tiny_model("llada", seed=4))

    def answer(seed: int, *draw: int) -> tuple[int, ...]:
        settings = SamplerSettings(
            max_new_tokens=8, block_length=8, steps=8, temperature=2.0, seed=seed
        )
        request = Request(ids=text(CLS, 9, 11, SEP), draw=draw)
        return tuple(generate(predict, [request], WORDS, settings)[0].ids.tolist())

    assert answer(1, 0, 0) == answer(1, 0, 0)
    assert len({answer(1, 0, 0), answer(1, 0, 1), answer(1, 1, 0), answer(2, 0, 0)}) == 4


def test_a_trace_replays_its_answer() -> None:
    predict = Predictor(tiny_model("llada", seed=4))
    taken: list[tuple[DenoisingStep, np.ndarray]] = []
    settings = SamplerSettings(max_new_tokens=12, block_length=4, steps=3, grow=False)
    (one,) = generate(
        predict, [Request(ids=text(CLS, 9, SEP))], Vocabulary(MASK, (), PAD), settings,
        lambda number, step, answer: taken.append((step, answer)),
    )  # fmt: skip
    assert [step.step for step, _ in taken] == list(range(9))
    assert [step.block for step, _ in taken] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for most in (1, 4, 9, 50):
        canvas = np.full(12, MASK)
        steps = merged(taken, most)
        assert len(steps) == min(most, 9)
        for step, answer in steps:
            assert list(step.positions) == sorted(step.positions)
            canvas[list(step.positions)] = step.ids
            assert canvas.tolist() == answer.tolist()
        assert canvas.tolist() == one.ids.tolist()


def test_padding_rows_of_the_head_are_never_chosen() -> None:
    """The published vocabularies have such rows, and no tokenizer decodes them."""

    def predict(ids: torch.Tensor, real: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return torch.arange(64.0).expand(len(places), 64).clone()

    settings = SamplerSettings(max_new_tokens=3, block_length=3, steps=3)
    words = Vocabulary(MASK, (), PAD, size=VOCABULARY)
    (one,) = generate(predict, [Request(ids=text(CLS, 9, SEP))], words, settings)
    assert one.ids.tolist() == [VOCABULARY - 1] * 3
