"""Rows of block diffusion through native causal LMs: what each token sees, and equal losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import MASK, PAD, assert_same_vector, document_item, gradient, rules, tiny_model
from torch import Tensor
from torch.nn import functional as F

from plugin.batch import Batch
from plugin.data.collate import lay_out
from plugin.models.configuration import set_attention
from plugin.models.diffusion import DiffusionModel
from plugin.models.flops import FlopCount
from plugin.objectives.answers import Item
from plugin.objectives.block import Blocks
from plugin.objectives.masked import Corruption
from plugin.run.facts import BlockFacts

every_family = pytest.mark.parametrize("family", ["llama", "qwen3"])


def module_of(family: str, blocks: Blocks, seed: int = 0) -> DiffusionModel:
    model = tiny_model(family, seed)
    context = "causal" if blocks.causal else "block"
    facts = BlockFacts(size=blocks.size, clean_context=context, shift=blocks.shift)
    set_attention(model.config, "block", facts)
    return DiffusionModel(model, PAD, "loop")


def text(length: int, prompt: int = 0, seed: int = 0) -> Item:
    ids = np.random.default_rng(seed).integers(5, 40, length).astype(np.int32)
    return document_item(ids, np.arange(length) >= prompt, prompt, index=seed)


def row(item: Item, blocks: Blocks, t: float = 0.5, **noise: Any) -> Corruption:
    how = rules(mask_count="exact", **noise)
    (one,) = blocks.corrupt(item, blocks.level(item, how.noise, t), how.noise, how.loss)
    return one


def batch_of(*parts: tuple[Item, Corruption]) -> Batch:
    return lay_out([item.ids for item, _ in parts], [one for _, one in parts])


def states(module: DiffusionModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        return module.hidden_states(batch)


def changed(module: DiffusionModel, batch: Batch, place: int) -> list[int]:
    """Return the places of a batch whose states depend on the token at `place`."""
    ids = batch.ids.clone()
    ids[place] = 5 + (ids[place] - 4) % 30
    other = states(module, replace(batch, ids=ids))
    return torch.nonzero((states(module, batch) - other).abs().amax(1) > 1e-7)[:, 0].tolist()


# --- what a token sees (oracle b)


@every_family
@pytest.mark.parametrize("causal", [False, True])
def test_an_edit_changes_what_the_rule_says_and_nothing_else(family: str, causal: bool) -> None:
    blocks = Blocks(size=4, views=2, causal=causal)
    first, second = text(10, prompt=4), text(7, prompt=2, seed=1)
    batch = batch_of((first, row(first, blocks)), (second, row(second, blocks)))
    module = module_of(family, blocks)
    # the first row: clean 0 to 9, copies of the places 4 to 9 at 10 to 15 and 16 to 21
    later = [14, 15, 20, 21]  # noisy tokens of the last block
    own = list(range(5 if causal else 4, 8))
    assert changed(module, batch, 5) == sorted({5, *own, 8, 9, *later})
    assert changed(module, batch, 11) == [10, 11, 12, 13]
    assert changed(module, batch, 20) == [20, 21]
    assert all(place >= 22 for place in changed(module, batch, 22))


# --- equal losses (oracles c, d, f, g, h)


@every_family
def test_one_block_is_masked_diffusion_under_the_same_mask(family: str) -> None:
    item, blocks = text(12, prompt=5), Blocks(size=16)
    one, module = row(item, blocks), module_of(family, blocks)
    loss = module(batch_of((item, one))).weighted.sum()
    plain = replace(one, noisy=one.noisy[12:], masked=one.masked - 12, copies=None)
    full = tiny_model(family)  # full attention
    wanted = DiffusionModel(full, PAD, "loop")(batch_of((item, plain))).weighted.sum()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)


@every_family
def test_blocks_of_one_token_are_a_chain_of_masks(family: str) -> None:
    """Each token is predicted by a mask behind the clean tokens before it, causally."""
    item, blocks = text(9), Blocks(size=1)
    nll = module_of(family, blocks)(batch_of((item, row(item, blocks, t=1.0)))).nll.sum()
    causal = tiny_model(family)
    set_attention(causal.config, "causal")
    ids, total = torch.tensor(item.ids.astype("int64")), 0.0
    for place in range(9):
        shown = torch.cat([ids[:place], torch.tensor([MASK])])[None]
        with torch.no_grad():
            logits = causal(input_ids=shown, use_cache=False).logits[0, -1]
        total += F.cross_entropy(logits, ids[place]).item()
    assert nll.item() == pytest.approx(total, abs=1e-5 * 9)


@every_family
def test_next_token_loss_is_that_of_the_causal_model(family: str) -> None:
    item, blocks = text(9, prompt=3), Blocks(size=4, causal=True, ar_weight=0.5)
    both = module_of(family, blocks)(batch_of((item, row(item, blocks, t=0.5)))).weighted.sum()
    without = replace(blocks, ar_weight=0.0)
    noisy = module_of(family, blocks)(batch_of((item, row(item, without, t=0.5)))).weighted.sum()
    causal = tiny_model(family)
    set_attention(causal.config, "causal")
    ids = torch.tensor(item.ids.astype("int64"))
    logits = causal(input_ids=ids[None], use_cache=False).logits[0, 2:-1]
    wanted = 0.5 * F.cross_entropy(logits, ids[3:], reduction="sum")
    assert (both - noisy).item() == pytest.approx(wanted.item(), abs=1e-5)


@every_family
def test_a_shift_reads_the_state_of_the_token_before(family: str) -> None:
    item, blocks = text(9, prompt=2), Blocks(size=4, shift=True)
    one, module = row(item, blocks, t=1.0), module_of(family, blocks)
    batch = batch_of((item, one))
    nll = module(batch).nll.sum()
    hidden = states(module, batch)
    # copies of the places 0 to 8 begin at 9; places 4 and 8 open a block, so clean 3 and 7 predict
    before = {2: 10, 3: 11, 4: 3, 5: 13, 6: 14, 7: 15, 8: 7}
    logits = module.model.lm_head(hidden[list(before.values())])
    target = torch.tensor(item.ids.astype("int64"))[list(before)]
    assert nll.item() == pytest.approx(
        F.cross_entropy(logits, target, reduction="sum").item(), abs=1e-5
    )


@every_family
def test_packed_rows_are_separate_ones(family: str) -> None:
    blocks = Blocks(size=4, views=2, half_life=0.1)
    items = [text(length, length // 3, length) for length in (5, 17, 17, 12)]
    rows = [(item, row(item, blocks, t=0.4)) for item in items]
    together = module_of(family, blocks)(batch_of(*rows)).weighted
    alone = [module_of(family, blocks)(batch_of(one)).weighted.sum().item() for one in rows]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)


@every_family
def test_two_copies_in_one_row_are_two_rows(family: str) -> None:
    """Losses and gradients are those of each copy behind a clean document of its own."""
    item, blocks = text(14, prompt=5), Blocks(size=4, views=2, half_life=0.1)
    one = row(item, blocks)
    module, apart = module_of(family, blocks), module_of(family, blocks)
    loss = module(batch_of((item, one))).weighted.sum()
    loss.backward()
    rows = one.copies
    assert rows
    parts: list[tuple[Item, Corruption]] = []
    for number in (1, 2):
        kept = np.flatnonzero((rows.copy == 0) | (rows.copy == number))
        mine = rows.copy[one.masked] == number
        places = np.searchsorted(kept, one.masked[mine])
        copies = replace(
            rows,
            position=rows.position[kept],
            copy=rows.copy[kept],
            limit=rows.limit[kept],
            source=places,
        )
        part = replace(
            one, noisy=one.noisy[kept], masked=places, weight=one.weight[mine], copies=copies
        )
        parts.append((item, part))
    split = apart(batch_of(*parts)).weighted.sum()
    split.backward()
    assert loss.item() == pytest.approx(split.item(), abs=1e-5)
    assert_same_vector(gradient(module), gradient(apart))


def test_uniform_logits_cost_ln_v_a_token_under_two_copies() -> None:
    item, blocks = text(21, prompt=6), Blocks(size=4, views=2, half_life=0.1)
    module = module_of("llama", blocks)
    head: Any = module.model.lm_head
    torch.nn.init.zeros_(head.weight)
    one = row(item, blocks, t=0.3)
    loss = module(batch_of((item, one))).weighted.sum() / one.count
    assert loss.item() == pytest.approx(math.log(head.weight.shape[0]), rel=1e-6)


def test_operations_of_a_row_count_its_tokens_and_pairs() -> None:
    """By hand: two layers 8 wide, pairs x (scores + values) x 2 operations x 3 passes."""
    count = FlopCount(body=10.0, head=100.0, attention=((8, None), (8, None)))
    item, blocks = text(8), Blocks(size=4)
    one = row(item, blocks)
    assert one.copies
    assert (one.noisy.size, one.copies.pairs) == (16, 96)
    assert count.step([8], 3, (16, 96)) == 10 * 16 + 100 * 3 + 2 * 12 * 8 * 96
