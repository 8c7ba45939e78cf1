"""Block-wise decoding: quotas, a decode worked by hand on a table model, independent rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers.table_model import table
from helpers.tiny import CLS, FAMILIES, MASK, PAD, SEP, VOCABULARY, tiny_model

from plugin.config.sampler import SamplerSettings
from plugin.models.diffusion import Predict, Predictor
from plugin.sampling.generate import generate, stream
from plugin.sampling.request import DenoisingStep, Request, Sample, Vocabulary

WORDS = Vocabulary(MASK, (SEP,), PAD)


def prompt(*words: int) -> np.ndarray:
    return np.array([CLS, *words, SEP], dtype=np.int32)


def run(
    predict: Predict,
    prompts: Sequence[np.ndarray],
    settings: SamplerSettings,
    words: Vocabulary = WORDS,
) -> tuple[list[Sample], list[list[int]]]:
    """Return the answers and the states of the first row."""
    frames: list[list[int]] = []

    def keep(number: int, step: DenoisingStep, answer: np.ndarray) -> None:
        if number == 0:
            frames.append(answer.tolist())

    requests = [Request(ids=ids, draw=(number,)) for number, ids in enumerate(prompts)]
    return generate(predict, requests, words, settings, keep), frames


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
    settings = SamplerSettings(max_new_tokens=4, block_length=4, steps=4)
    (one,), frames = run(table(next_word), [prompt(10)], settings)
    assert frames == [
        [11, MASK, MASK, MASK],
        [11, 12, MASK, MASK],
        [11, 12, 13, MASK],
        [11, 12, 13, 14],
    ]
    assert (one.ids.tolist(), one.steps, one.nfe) == ([11, 12, 13, 14], 4, 4)


def test_ties_in_confidence_reveal_the_first_token() -> None:
    settings = SamplerSettings(max_new_tokens=4, block_length=4, steps=2)
    (one,), frames = run(table(next_word), [prompt(10)], settings)
    assert frames == [[11, 30, MASK, MASK], [11, 30, 31, 30]]
    assert one.steps == 2


def test_confidence_decides_and_not_order() -> None:
    heights = {3: 2.0, 4: 5.0, 5: 1.0, 6: 3.0}
    settings = SamplerSettings(max_new_tokens=4, block_length=4, steps=4)
    guess = table(lambda row, place: (place + 20, heights[place]))
    assert run(guess, [prompt(10)], settings)[1] == [
        [MASK, 24, MASK, MASK],
        [MASK, 24, MASK, 26],
        [23, 24, MASK, 26],
        [23, 24, 25, 26],
    ]


def test_later_block_waits_despite_confidence() -> None:
    settings = SamplerSettings(max_new_tokens=4, block_length=2, steps=2, grow=False)
    guess = table(lambda row, place: (place + 20, float(place)))
    assert run(guess, [prompt(10)], settings)[1] == [
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
    (one,), _ = run(table(guess), [prompt(10)], settings)
    assert list(dict.fromkeys(seen)) == list(dict.fromkeys(sizes))
    assert one.ids.tolist() == [20] * 5, "the last block is the one token left"
    assert one.steps == 5


def test_mask_token_is_never_revealed() -> None:
    settings = SamplerSettings(max_new_tokens=3, block_length=3, steps=1)
    (one,), _ = run(table(lambda row, place: (MASK, 99.0)), [prompt(10)], settings)
    assert MASK not in one.ids


@pytest.mark.parametrize("grow", [True, False])
def test_row_stops_after_the_block_of_its_end_token(grow: bool) -> None:
    # from 10: 11 12 | 13 14 | end ...; from 13: 14 end |; from 12: 13 14 | end
    settings = SamplerSettings(max_new_tokens=8, block_length=2, steps=2, grow=grow)
    got, _ = run(table(next_word), [prompt(10), prompt(13), prompt(12)], settings)
    assert answers(got) == [[11, 12, 13, 14, SEP, SEP], [14, SEP], [13, 14, SEP, SEP]]
    assert [one.steps for one in got] == [6, 2, 4]
    assert [one.ids.dtype for one in got] == [np.int32] * 3


def test_end_token_in_the_prompt_is_ignored() -> None:
    settings = SamplerSettings(max_new_tokens=4, block_length=2, steps=2)
    ids = np.array([CLS, 9, SEP, 9, SEP], np.int32)
    (one,), _ = run(table(lambda row, place: (20, 1.0)), [ids], settings)
    assert one.ids.tolist() == [20] * 4


@pytest.mark.parametrize("steps", range(1, 12))
def test_a_block_ends_within_its_steps(steps: int) -> None:
    guess = table(lambda row, place: (place % 30 + 8, float(place % 7)))
    for size in range(1, 12):
        settings = SamplerSettings(max_new_tokens=size, block_length=size, steps=steps)
        (one,), frames = run(guess, [prompt(10)], settings)
        left = [size, *(frame.count(MASK) for frame in frames)]
        revealed = [before - after for before, after in pairwise(left)]
        assert one.steps == min(steps, size)
        assert max(revealed) - min(revealed) <= 1
        assert revealed == sorted(revealed, reverse=True), "the first size % steps reveal one more"


def random_prompts(count: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [prompt(*rng.integers(5, VOCABULARY, size=1 + 2 * number)) for number in range(count)]


CELLS = [
    {},
    {"grow": False},
    {"strategy": "random"},
    {"strategy": "topk_margin", "grow": False},
    {"strategy": "entropy", "cache": "prompt"},
    {"strategy": "maskgit_plus", "cache": "dual", "grow": False},
    {"strategy": "origin"},
    {"cache": "prompt", "grow": False},
    {"cache": "prefix", "grow": False},
    {"cache": "prefix", "grow": False, "threshold": 0.05},
    {"cache": "dual"},
    {"threshold": 0.05, "cache": "dual", "grow": False},
    {"factor": 2.5},
    {"strategy": "entropy", "entropy_bound": 3.4, "cache": "dual", "grow": False},
    {"cfg": 0.7},
    {"cfg": 0.7, "cfg_prompt": "dropped", "cache": "dual", "grow": False},
    {"cfg": 0.7, "cache": "prefix", "grow": False},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "alg_temp": 0.5},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_batched_answers_equal_single_answers(family: str, cell: dict[str, Any]) -> None:
    """Of every strategy, rule, cache and guidance; and a batch that rows leave and join."""
    predict = Predictor(tiny_model(family, seed=4))
    settings = SamplerSettings(max_new_tokens=12, block_length=4, steps=3, **cell)
    requests = [Request(ids=ids, draw=(n,)) for n, ids in enumerate(random_prompts())]
    together = generate(predict, requests, WORDS, settings)
    alone = [generate(predict, [one], WORDS, settings)[0] for one in requests]
    streamed = dict(stream(predict, requests, WORDS, settings, batch_size=3))
    for found in (alone, [streamed[number] for number in range(8)]):
        assert answers(together) == answers(found)
        assert [(one.steps, one.nfe) for one in together] == [(one.steps, one.nfe) for one in found]
    assert len({tuple(answer) for answer in answers(together)}) > 4, "the prompts matter"


@pytest.mark.parametrize("pad_id", [PAD, 17])
def test_sampling_ignores_the_pad_token(pad_id: int) -> None:
    predict, prompts = Predictor(tiny_model("modernbert", seed=4)), random_prompts(3)
    settings = SamplerSettings(max_new_tokens=8, block_length=4, steps=4)
    words = Vocabulary(MASK, (SEP,), pad_id)
    assert answers(run(predict, prompts, settings, words)[0]) == answers(
        run(predict, prompts, settings)[0]
    )


@pytest.mark.parametrize("grow", [True, False])
def test_no_mask_survives_and_prompts_stay(grow: bool) -> None:
    predict, prompts = Predictor(tiny_model("bert", seed=4)), random_prompts(3)
    prompts[1][1] = MASK  # even a mask in a prompt belongs to the prompt
    kept = [one.copy() for one in prompts]
    for block in (1, 2, 3, 5, 7, 16):
        for steps in (1, 2, 3, 7, 50):
            settings = SamplerSettings(max_new_tokens=7, block_length=block, steps=steps, grow=grow)
            for one in run(predict, prompts, settings)[0]:
                assert MASK not in one.ids
                assert one.ids.size == 7 or SEP in one.ids
    assert all(np.array_equal(one, before) for one, before in zip(prompts, kept, strict=True))
