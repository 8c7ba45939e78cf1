"""Block and causal models: the grid of training, the exact cache, and rows that stay apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.table_model import table
from helpers.tiny import CLS, MASK, PAD, SEP, VOCABULARY, tiny_model

from plugin.base.grid import clean_limit
from plugin.config.sampler import SamplerSettings, block_by_block, token_by_token
from plugin.data.collate import lay_out
from plugin.models.backbones import output_projection
from plugin.models.configuration import block_facts, set_attention
from plugin.models.diffusion import DiffusionModel, Predictor
from plugin.run.facts import BlockFacts
from plugin.sampling.block_likelihood import CopiedBlocks
from plugin.sampling.generate import generate, stream
from plugin.sampling.likelihood import Canvas
from plugin.sampling.request import DenoisingStep, Request, Sample, Vocabulary

WORDS, ENDLESS = Vocabulary(MASK, (SEP,), PAD), Vocabulary(MASK, (), PAD)
SIZE = 4
FACTS = [
    BlockFacts(size=SIZE, clean_context=context, shift=shift)
    for context, shift in itertools.product(("block", "causal"), (False, True))
]
every_block = pytest.mark.parametrize("block", FACTS, ids=str)
BLOCKWISE = block_by_block(11, SIZE)


class Recorded(Predictor):
    """A predictor that records its logits, and the columns of each forward: queried and seen."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.logits: list[torch.Tensor] = []
        self.columns: list[tuple[int, int]] = []

    def _record(self, columns: tuple[int, int], logits: torch.Tensor) -> torch.Tensor:
        self.columns.append(columns)
        self.logits.append(logits.clone())
        return logits

    def __call__(self, ids: torch.Tensor, real: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return self._record((ids.shape[1], ids.shape[1]), super().__call__(ids, real, places))

    def cached(self, ids: torch.Tensor, window: Any, places: torch.Tensor) -> torch.Tensor:
        shape = ids.shape[1], window.real.shape[1]
        return self._record(shape, super().cached(ids, window, places))


def model_of(block: BlockFacts, family: str = "llama") -> Any:
    model = tiny_model(family, seed=3)
    set_attention(model.config, "block", block)
    return model


def causal_model(family: str) -> Any:
    model = tiny_model(family, seed=3)
    set_attention(model.config, "causal")
    return model


def requests(*sizes: int) -> list[Request]:
    rng = np.random.default_rng(1)
    return [
        Request(
            ids=np.array([CLS, *rng.integers(5, VOCABULARY, size - 1)], np.int32), draw=(number,)
        )
        for number, size in enumerate(sizes)
    ]


EIGHT = requests(5, 1, 8, 4, 10, 13, 2, 7)


def ids_of(samples: Sequence[Sample]) -> list[list[int]]:
    return [one.ids.tolist() for one in samples]


def steps_of(predict: Any, request: Request, settings: SamplerSettings) -> list[list[int]]:
    """Return the places, in the document, that each step reveals."""
    taken: list[DenoisingStep] = []
    generate(predict, [request], ENDLESS, settings, lambda _, step, __: taken.append(step))
    return [[request.start + place for place in step.positions] for step in taken]


# --- the grid


@pytest.mark.parametrize(
    ("prompt", "blocks"),
    [
        (5, [[5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]),  # of 4, its fifth token opens a block
        (4, [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14]]),
        (3, [[3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]),
    ],
)
def test_blocks_lie_on_the_grid_of_the_document(prompt: int, blocks: list[list[int]]) -> None:
    settings = replace(BLOCKWISE, steps=1, cache="none")
    (one,) = requests(prompt)
    assert steps_of(table(lambda row, place: (20, 1.0)), one, settings) == blocks
    assert steps_of(Predictor(model_of(FACTS[0])), one, replace(settings, cache="exact")) == blocks


def test_blocks_of_other_models_begin_behind_the_prompt() -> None:
    settings = replace(BLOCKWISE, steps=1, grid=False, cache="none")
    (one,) = requests(5)
    found = steps_of(table(lambda row, place: (20, 1.0)), one, settings)
    assert found == [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15]]


def training_row(ids: np.ndarray, block: BlockFacts) -> Canvas:
    """Return the row of a document whose places from 5 to 7 are masked in a noisy copy."""
    clean, noisy = np.arange(ids.size), np.arange(4, 8)
    position = np.concatenate([clean, noisy])
    limit = clean_limit(clean, block.size, causal=block.clean_context == "causal")
    source = ids.size + np.array([1, 2, 3]) - int(block.shift)
    shown = ids[position].copy()
    shown[ids.size + np.array([1, 2, 3])] = MASK
    copies = CopiedBlocks(
        position=position,
        copy=(np.arange(position.size) >= ids.size).astype(np.int64),
        limit=np.concatenate([limit, np.full(4, 4)]),
        source=source,
    )
    return Canvas(ids, shown, ids.size + np.array([1, 2, 3]), 5, copies)


@every_block
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_first_block_has_the_logits_of_training(block: BlockFacts, family: str) -> None:
    """The trap of next-methods 2.6 (i): a prompt of 5 tokens with blocks of 4.

    The row of training also holds the tokens behind the block, and hides them.
    """
    model = model_of(block, family)
    ids = np.array([CLS, 9, 10, 11, 12, 13, 14, 15, 16, 17], np.int32)
    row = training_row(ids, block)
    module = DiffusionModel(model, PAD, "loop").eval()
    with torch.no_grad():
        states = module.masked_states(lay_out([row.ids], [row]))
        trained = output_projection(model)(states)
    for cache in ("none", "exact"):
        predict = Recorded(model)
        settings = replace(BLOCKWISE, cache=cache)
        generate(predict, [Request(ids=ids[:5])], ENDLESS, settings)
        torch.testing.assert_close(predict.logits[0], trained, atol=1e-5, rtol=1e-5)
    padded = Recorded(model)  # a prompt whose blocks begin behind it, as dLLM's sampler has it
    left = np.array([PAD, PAD, PAD, *ids[:5]], np.int32)
    generate(padded, [Request(ids=left)], ENDLESS, BLOCKWISE)
    assert (padded.logits[0][:3] - trained).abs().max() > 0.01


# --- the exact cache


RULES: list[dict[str, Any]] = [
    {},
    {"steps": 2},
    {"strategy": "topk_margin", "steps": 3},
    {"strategy": "maskgit_plus", "temperature": 0.8, "top_k": 9},
    {"strategy": "origin", "temperature": 1.0, "top_p": 0.9},
    {"strategy": "random"},
    {"strategy": "entropy", "entropy_bound": 3.0},
    {"threshold": 0.1},
    {"factor": 1.9},
    {"alg_temp": 0.5, "seed": 4},
]


@pytest.mark.parametrize(
    ("rule", "block"), list(zip(RULES, itertools.cycle(FACTS), strict=False)), ids=str
)
def test_cached_text_is_the_uncached_text_under_any_rule(
    rule: dict[str, Any], block: BlockFacts
) -> None:
    """With all of eight prompts in a batch, in batches of 3, and each alone."""
    predict = Predictor(model_of(block))
    settings = replace(BLOCKWISE, **rule)
    plain = generate(predict, EIGHT, WORDS, replace(settings, cache="none"))
    cached = generate(predict, EIGHT, WORDS, settings)
    threes = dict(stream(predict, EIGHT, WORDS, settings, 3))
    alone = [generate(predict, [one], WORDS, settings)[0] for one in EIGHT]
    assert ids_of(cached) == ids_of(plain) == ids_of(alone)
    assert [threes[number].ids.tolist() for number in range(8)] == ids_of(plain)
    assert [one.nfe for one in cached] == [one.nfe for one in plain] == [one.steps for one in plain]
    assert not np.isin(np.concatenate([one.ids for one in cached]), [MASK]).any()


@every_block
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("length", [1, 3, SIZE, 16])
def test_cached_logits_are_the_uncached_logits(block: BlockFacts, family: str, length: int) -> None:
    model = model_of(block, family)
    settings = block_by_block(11, length)
    plain, cached = Recorded(model), Recorded(model)
    for request in EIGHT[:3]:
        generate(plain, [request], ENDLESS, replace(settings, cache="none"))
        generate(cached, [request], ENDLESS, settings)
    assert len(plain.logits) == len(cached.logits)
    for one, other in zip(plain.logits, cached.logits, strict=True):
        torch.testing.assert_close(other, one, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("shift", "columns"),
    [
        # a prompt of 5, two steps a block: all columns; the block; the clean block and the next
        (False, [(8, 8), (4, 8), (8, 12), (4, 12), (8, 16), (4, 16)]),
        (True, [(8, 8), (4, 8), (8, 12), (5, 12), (8, 16), (5, 16)]),
    ],
)
def test_cache_computes_a_block_once_more_as_the_next_begins(
    shift: bool, columns: list[tuple[int, int]]
) -> None:
    """A forward that writes the clean block is none of its own: a block costs its steps."""
    predict = Recorded(model_of(BlockFacts(size=SIZE, shift=shift)))
    (one,) = generate(predict, requests(5), ENDLESS, replace(BLOCKWISE, steps=2))
    assert predict.columns == columns
    assert one.nfe == one.steps == 6


@pytest.mark.parametrize("family", ["llama", "qwen3", "llada", "Dream"])
def test_causal_text_is_the_same_from_one_column_a_token(family: str) -> None:
    model = causal_model(family)
    for changes in ({}, {"temperature": 1.0, "top_k": 12, "seed": 3}):
        settings = replace(token_by_token(6), **changes)
        plain, cached = Recorded(model), Recorded(model)
        expected = generate(plain, EIGHT[:1], ENDLESS, replace(settings, cache="none"))
        assert ids_of(generate(cached, EIGHT[:1], ENDLESS, settings)) == ids_of(expected)
        for one, other in zip(plain.logits, cached.logits, strict=True):
            torch.testing.assert_close(other, one, atol=2e-5, rtol=2e-5)
        assert plain.columns == [(size, size) for size in range(6, 12)]
        assert cached.columns == [(5, 6), *((1, size) for size in range(7, 12))]
        assert expected[0].nfe == 6
        together = generate(cached, EIGHT, WORDS, settings)
        alone = [generate(cached, [one], WORDS, settings)[0] for one in EIGHT]
        assert ids_of(together) == ids_of(alone)


# --- ends, sizes, refusals


def test_answer_ends_after_the_block_of_its_end_token() -> None:
    """Of a prompt of 5 the first block is 5 to 7: an end at place 6 leaves place 7 written."""

    def guess(row: list[int], place: int) -> tuple[int, float]:
        return (SEP if place == 6 else 20, 1.0)

    settings = replace(BLOCKWISE, cache="none")
    found = generate(table(guess), requests(5, 7), WORDS, settings)
    assert ids_of(found) == [[20, SEP, 20], [20] * 11]


@every_block
def test_block_length_is_the_attention_of_a_model_of_that_size(block: BlockFacts) -> None:
    """Text and logits at block_length 2 are those of a model whose configuration says 2."""
    wide, narrow = (
        Recorded(model_of(block.model_copy(update={"size": size}))) for size in (SIZE, 2)
    )
    config = wide._model.config
    for cache in ("none", "exact"):
        settings = replace(block_by_block(11, 2), cache=cache)
        texts = [ids_of(generate(one, EIGHT, WORDS, settings)) for one in (wide, narrow)]
        assert texts[0] == texts[1]
    for one, other in zip(wide.logits, narrow.logits, strict=True):
        assert torch.equal(one, other)
    own = ids_of(generate(wide, EIGHT, WORDS, BLOCKWISE))
    assert own != texts[0]
    facts = block_facts(config)
    assert facts
    assert facts.size == SIZE, "the model's own configuration stays"


def test_blocks_off_the_grid_are_no_block_models() -> None:
    with pytest.raises(AssertionError, match="on the grid"):
        generate(Predictor(model_of(FACTS[0])), EIGHT, WORDS, replace(BLOCKWISE, grid=False))
    with pytest.raises(AssertionError, match="on the grid"):
        generate(Predictor(tiny_model("llama")), EIGHT, WORDS, BLOCKWISE)
