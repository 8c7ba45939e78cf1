"""Block-wise decoding: quotas, a decode worked by hand on a table model, independent rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from helpers.tiny import CLS, FAMILIES, MASK, PAD, SEP, VOCABULARY, tiny_model

from plugin.models.diffusion import predictor
from plugin.run.facts import SamplerSettings
from plugin.sampling.blockwise import (
    Predict,
    Sample,
    Vocabulary,
    generate,
    reveal_quotas,
)

WORDS = Vocabulary(MASK, (SEP,), PAD)
Guess = Callable[
    [list[int], int], tuple[int, float]
]  # (visible row, place) -> (likeliest token, its logit)


@pytest.mark.parametrize(
    ("masked", "steps", "quotas"),
    [
        (8, 8, [1] * 8),
        (8, 3, [3, 3, 2]),
        (7, 4, [2, 2, 2, 1]),
        (5, 1, [5]),
        (3, 9, [1, 1, 1]),  # a step reveals at least one token
        (32, 5, [7, 7, 6, 6, 6]),
    ],
)
def test_reveal_quotas_by_hand(masked: int, steps: int, quotas: list[int]) -> None:
    assert reveal_quotas(masked, steps) == quotas


def test_reveal_quotas_are_even() -> None:
    for masked in range(1, 40):
        for steps in range(1, 45):
            quotas = reveal_quotas(masked, steps)
            assert sum(quotas) == masked
            assert max(quotas) - min(quotas) <= 1
            assert len(quotas) == min(steps, masked)


def table(guess: Guess) -> Predict:
    """Return a model that is a function of the tokens that it sees, padding removed."""

    def predict(ids: torch.Tensor, real: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(places), VOCABULARY)
        for number, (row, column) in enumerate(places.tolist()):
            assert real[row, column]
            token, height = guess(ids[row][real[row]].tolist(), column)
            logits[number, token] = height
        return logits

    return predict


def prompt(*words: int) -> np.ndarray:
    return np.array([CLS, *words, SEP], dtype=np.int32)


def answers(samples: Sequence[Sample]) -> list[list[int]]:
    return [one.ids.tolist() for one in samples]


def next_word(row: list[int], place: int) -> tuple[int, float]:
    """Predict each word as the number after the one before it, unsure and wrong after a mask.

    15 ends.
    """
    before = row[place - 1]
    if row.index(SEP) == place - 1:
        before = row[1]  # the prompt's word
    elif before == SEP:
        before = 14  # more end tokens follow an end token
    return (SEP if before == 14 else before + 1, 9.0) if before != MASK else (30, 1.0)


def test_most_confident_token_is_revealed_first() -> None:
    frames: list[list[int]] = []
    settings = SamplerSettings(max_new_tokens=4, block_length=4, steps=4)
    (one,) = generate(
        table(next_word),
        [prompt(10)],
        WORDS,
        settings,
        lambda rows: frames.append(rows[0].tolist()),
    )
    start = [CLS, 10, SEP]
    assert frames == [
        [*start, 11, MASK, MASK, MASK],
        [*start, 11, 12, MASK, MASK],
        [*start, 11, 12, 13, MASK],
        [*start, 11, 12, 13, 14],
    ]
    assert (one.ids.tolist(), one.steps) == ([11, 12, 13, 14], 4)


def test_ties_in_confidence_reveal_the_first_token() -> None:
    frames: list[list[int]] = []
    settings = SamplerSettings(max_new_tokens=4, block_length=4, steps=2)
    (one,) = generate(
        table(next_word),
        [prompt(10)],
        WORDS,
        settings,
        lambda rows: frames.append(rows[0].tolist()[3:]),
    )
    assert frames == [[11, 30, MASK, MASK], [11, 30, 31, 30]]
    assert one.steps == 2


def test_confidence_decides_and_not_order() -> None:
    heights = {3: 2.0, 4: 5.0, 5: 1.0, 6: 3.0}
    frames: list[list[int]] = []
    settings = SamplerSettings(max_new_tokens=4, block_length=4, steps=4)
    generate(
        table(lambda row, place: (place + 20, heights[place])),
        [prompt(10)],
        WORDS,
        settings,
        lambda rows: frames.append(rows[0].tolist()[3:]),
    )
    assert frames == [
        [MASK, 24, MASK, MASK],
        [MASK, 24, MASK, 26],
        [23, 24, MASK, 26],
        [23, 24, 25, 26],
    ]


def test_later_block_waits_despite_confidence() -> None:
    frames: list[list[int]] = []
    settings = SamplerSettings(max_new_tokens=4, block_length=2, steps=2, grow=False)
    generate(
        table(lambda row, place: (place + 20, float(place))),
        [prompt(10)],
        WORDS,
        settings,
        lambda rows: frames.append(rows[0].tolist()[3:]),
    )
    assert frames == [
        [MASK, 24, MASK, MASK],
        [23, 24, MASK, MASK],
        [23, 24, MASK, 26],
        [23, 24, 25, 26],
    ]


@pytest.mark.parametrize(("grow", "sizes"), [(True, [5, 5, 7, 7, 8]), (False, [8] * 5)])
def test_grow_ends_the_canvas_with_the_block(grow: bool, sizes: list[int]) -> None:
    seen: list[int] = []

    def guess(row: list[int], place: int) -> tuple[int, float]:
        seen.append(len(row))
        return 20, 1.0

    settings = SamplerSettings(max_new_tokens=5, block_length=2, steps=2, grow=grow)
    (one,) = generate(table(guess), [prompt(10)], WORDS, settings)
    assert list(dict.fromkeys(seen)) == list(dict.fromkeys(sizes))
    assert one.ids.tolist() == [20] * 5, "the last block is the one token left"
    assert one.steps == 5


def test_mask_token_is_never_revealed() -> None:
    settings = SamplerSettings(max_new_tokens=3, block_length=3, steps=1)
    (one,) = generate(table(lambda row, place: (MASK, 99.0)), [prompt(10)], WORDS, settings)
    assert MASK not in one.ids


@pytest.mark.parametrize("grow", [True, False])
def test_row_stops_after_the_block_of_its_end_token(grow: bool) -> None:
    # from 10: 11 12 | 13 14 | end ...; from 13: 14 end |; from 12: 13 14 | end
    settings = SamplerSettings(max_new_tokens=8, block_length=2, steps=2, grow=grow)
    prompts = [prompt(10), prompt(13), prompt(12)]
    got = generate(table(next_word), prompts, WORDS, settings)
    assert answers(got) == [[11, 12, 13, 14, SEP, SEP], [14, SEP], [13, 14, SEP, SEP]]
    assert [one.steps for one in got] == [6, 2, 4]
    assert [one.ids.dtype for one in got] == [np.int32] * 3


def test_end_token_in_the_prompt_is_ignored() -> None:
    settings = SamplerSettings(max_new_tokens=4, block_length=2, steps=2)
    (one,) = generate(
        table(lambda row, place: (20, 1.0)),
        [np.array([CLS, 9, SEP, 9, SEP], np.int32)],
        WORDS,
        settings,
    )
    assert one.ids.tolist() == [20] * 4


def random_prompts(count: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [prompt(*rng.integers(5, VOCABULARY, size=1 + 2 * number)) for number in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("grow", [True, False])
def test_batched_answers_equal_single_answers(family: str, grow: bool) -> None:
    predict, prompts = predictor(tiny_model(family, seed=4)), random_prompts()
    settings = SamplerSettings(max_new_tokens=12, block_length=4, steps=3, grow=grow)
    together = generate(predict, prompts, WORDS, settings)
    alone = [generate(predict, [one], WORDS, settings)[0] for one in prompts]
    assert answers(together) == answers(alone)
    assert [one.steps for one in together] == [one.steps for one in alone]
    assert len({tuple(answer) for answer in answers(together)}) > 4, "the prompts matter"


@pytest.mark.parametrize("pad_id", [PAD, 17])
def test_sampling_ignores_the_pad_token(pad_id: int) -> None:
    predict, prompts = predictor(tiny_model("modernbert", seed=4)), random_prompts(3)
    settings = SamplerSettings(max_new_tokens=8, block_length=4, steps=4)
    assert answers(
        generate(predict, prompts, Vocabulary(MASK, (SEP,), pad_id), settings)
    ) == answers(generate(predict, prompts, WORDS, settings))


@pytest.mark.parametrize("grow", [True, False])
def test_no_mask_survives_and_prompts_stay(grow: bool) -> None:
    predict, prompts = predictor(tiny_model("bert", seed=4)), random_prompts(3)
    prompts[1][1] = MASK  # even a mask in a prompt belongs to the prompt
    kept = [one.copy() for one in prompts]
    canvases: list[list[np.ndarray]] = []
    for block in (1, 2, 3, 5, 7, 16):
        for steps in (1, 2, 3, 7, 50):
            settings = SamplerSettings(max_new_tokens=7, block_length=block, steps=steps, grow=grow)
            for one in generate(predict, prompts, WORDS, settings, canvases.append):
                assert MASK not in one.ids
                assert one.ids.size == 7 or SEP in one.ids
    assert all(np.array_equal(one, before) for one, before in zip(prompts, kept, strict=True))
    for canvas in canvases:
        assert all(
            np.array_equal(row[: before.size], before)
            for row, before in zip(canvas, kept, strict=True)
        )
