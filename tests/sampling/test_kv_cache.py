"""Cached forwards: exact where nothing changed, their forwards counted, and their rows apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import CLS, FAMILIES, MASK, PAD, SEP, VOCABULARY, tiny_model

from plugin.config.sampler import SamplerSettings
from plugin.models.backbones import output_projection
from plugin.models.diffusion import Predictor
from plugin.sampling.generate import generate
from plugin.sampling.kv_cache import KeyValues, QueriedColumns
from plugin.sampling.request import Request, Vocabulary

WORDS = Vocabulary(MASK, (SEP,), PAD)
SIZES = (21, 9, 14)


def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randint(
        5, VOCABULARY, (3, max(SIZES)), generator=torch.Generator().manual_seed(seed)
    )
    real = torch.arange(max(SIZES)) < torch.tensor(SIZES)[:, None]
    return drawn.masked_fill(~real, PAD), real


@pytest.mark.parametrize("family", FAMILIES)
def test_queried_columns_equal_a_complete_forward(family: str) -> None:
    """With mixed lengths, ModernBERT's windows and Dream's shift; slots reused and in any subset."""
    predict, cache = Predictor(tiny_model(family, seed=4).eval()), KeyValues(4)
    for seed, slots in ((1, [0, 1, 3]), (2, [1, 2, 3])):
        ids, real = rows(seed)
        at = torch.arange(max(SIZES)).expand_as(ids)
        places = torch.tensor([[0, 12], [1, 6], [1, 7], [2, 6]])
        expected = predict(ids, real, places)
        slot = torch.tensor(slots)
        everything = predict.cached(ids, QueriedColumns(cache, slot, at, real, real), places)
        torch.testing.assert_close(everything, expected, atol=1e-5, rtol=1e-5)
        # only columns 5 to 8 of two rows, to 12 of the first one: the padding differs
        columns = torch.arange(5, 13).expand(3, 8)
        queried = columns < torch.tensor([13, 9, 9])[:, None]
        part = predict.cached(
            ids[:, 5:13],
            QueriedColumns(cache, slot, columns, queried, real),
            places - torch.tensor([0, 5]),
        )
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "mixed"),
    [*((family, False) for family in FAMILIES), ("llada", True), ("Dream", True)],
)
def test_half_precision_weights_are_cached_too(family: str, mixed: bool) -> None:
    """As on a GPU; `mixed`: the head trains in float32, as new rows under an adapter do."""
    model = tiny_model(family, seed=4).eval().to(torch.bfloat16)
    if mixed:
        output_projection(model).float()
    predict, cache = Predictor(model), KeyValues(3)
    ids, real = rows(1)
    at, places = torch.arange(max(SIZES)).expand_as(ids), torch.tensor([[0, 12], [1, 6], [2, 6]])
    expected = predict(ids, real, places)
    for columns in (at, at[:, 5:13]):
        queried = real[:, columns[0]]
        window = QueriedColumns(cache, torch.arange(3), columns, queried, real)
        shifted = places - torch.tensor([0, int(columns[0, 0])])
        found = predict.cached(ids.gather(1, columns), window, shifted)
        torch.testing.assert_close(found.float(), expected.float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["prompt", "prefix", "dual"])
def test_one_step_a_block_is_exact_with_any_cache(family: str, cache: str) -> None:
    """prefix and dual refresh as a block begins. prompt keeps what it saw in the first step."""
    predict = Predictor(tiny_model(family, seed=4))
    prompts = [Request(ids=np.array([CLS, *range(9, end), SEP], np.int32)) for end in (12, 19)]
    plain = {"max_new_tokens": 8, "block_length": 8 if cache == "prompt" else 2, "steps": 1}
    with_cache, without = (
        generate(predict, prompts, WORDS, SamplerSettings(**plain, grow=False, cache=kind))
        for kind in (cache, "none")
    )
    assert [one.ids.tolist() for one in with_cache] == [one.ids.tolist() for one in without]


class Counting(Predictor):
    """A predictor that records the shape of each forward: queried and seen columns."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.shapes: list[tuple[int, int]] = []

    def cached(self, ids: torch.Tensor, window: Any, places: torch.Tensor) -> torch.Tensor:
        self.shapes.append((ids.shape[1], window.real.shape[1]))
        return super().cached(ids, window, places)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    ("cache", "grow", "expected"),
    [
        # prompt of 5, blocks of 3, two steps each; a family with a shift queries one more
        ("dual", False, [(11, 11), (3, 11), (11, 11), (3, 11)]),
        ("prefix", False, [(11, 11), (6, 11), (11, 11), (3, 11)]),
        ("prompt", False, [(11, 11), (6, 11), (6, 11), (6, 11)]),
        ("dual", True, [(8, 8), (3, 8), (11, 11), (3, 11)]),
    ],
)
def test_a_cache_queries_only_its_columns(
    cache: str, grow: bool, expected: list[tuple[int, int]], shift: int
) -> None:
    predict = Counting(tiny_model("Dream" if shift else "llada", seed=4))
    settings = SamplerSettings(max_new_tokens=6, block_length=3, steps=2, grow=grow, cache=cache)
    ids = np.array([CLS, 9, 10, 11, SEP], np.int32)
    no_end = Vocabulary(MASK, (), PAD)
    (one,) = generate(predict, [Request(ids=ids)], no_end, settings)
    assert predict.shapes == [(Q if Q == T else Q + shift, T) for Q, T in expected]
    assert one.nfe == 4
