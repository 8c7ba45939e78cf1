"""Block diffusion's rows, levels, masks and weights: worked layouts and oracles of the papers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.tiny import MASK, document_item, rules

from plugin.batch import sees
from plugin.objectives.answers import Item
from plugin.objectives.block import Blocks, clipped, draw_masks, read_schedule
from plugin.objectives.masked import Corruption, RowCopies
from plugin.objectives.noise import EPSILON, Levels, Noise

DRAWS = 100_000


def text(length: int, prompt: int = 0, index: int = 0) -> Item:
    """Return a document whose token n is 10 + n, learned from `prompt` on."""
    ids = np.arange(10, 10 + length, dtype=np.int32)
    return document_item(ids, np.arange(length) >= prompt, prompt, index=index)


def row(
    item: Item, blocks: Blocks, t: float = 0.5, norm: str = "token", **noise: Any
) -> Corruption:
    how = rules(norm=norm, **noise)
    (one,) = blocks.corrupt(item, blocks.level(item, how.noise, t), how.noise, how.loss)
    return one


def copies(one: Corruption) -> RowCopies:
    assert one.copies
    return one.copies


def pairs_of(one: Corruption) -> np.ndarray:
    """Return bool [T, T] of a row: which key each query sees."""
    rows = copies(one)
    return sees(rows.copy[:, None], rows.limit[:, None], rows.copy, rows.limit, rows.position)  # type: ignore[arg-type]


# --- rows


def test_four_tokens_in_blocks_of_two_see_what_the_papers_draw() -> None:
    """The order here is the clean document, then its noisy copy."""
    drawn = pairs_of(row(text(4), Blocks(size=2))).astype(int)
    assert ["".join(map(str, line)) for line in drawn] == [
        *["11000000"] * 2,
        *["11110000"] * 2,
        *["00001100"] * 2,
        *["11000011"] * 2,
    ]


@pytest.mark.parametrize(
    ("length", "size", "pairs"), [(4, 2, 24), (8, 4, 96), (8, 1, 72), (8, 8, 128), (10, 4, 136)]
)
def test_pairs_that_attend_are_counted(length: int, size: int, pairs: int) -> None:
    one = row(text(length), Blocks(size=size))
    assert copies(one).pairs == pairs_of(one).sum() == pairs


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_pairs_of_any_row_are_counted(views: int, causal: bool) -> None:
    one = row(text(13, prompt=6), Blocks(size=4, views=views, causal=causal))
    assert copies(one).pairs == pairs_of(one).sum()


@pytest.mark.parametrize(
    ("prompt", "answer", "views", "tokens"), [(600, 200, 1, 1000), (200, 300, 2, 1100)]
)
def test_a_row_holds_copies_of_answers_alone(
    prompt: int, answer: int, views: int, tokens: int
) -> None:
    item, blocks = text(prompt + answer, prompt), Blocks(size=20, views=views)
    assert row(item, blocks).noisy.size == tokens
    offsets = np.array([0, prompt + answer])
    assert blocks.row_tokens(np.diff(offsets), item.supervised, offsets).tolist() == [tokens]


def test_a_block_with_the_end_of_the_prompt_is_copied_whole() -> None:
    one = row(text(9, prompt=5), Blocks(size=4), t=1.0)
    assert copies(one).position.tolist() == [*range(9), 4, 5, 6, 7, 8]
    assert copies(one).limit.tolist() == [*[4] * 4, *[8] * 4, 12, *[4] * 4, 8]
    assert one.noisy.tolist() == [*range(10, 19), 14, *[MASK] * 4]
    assert one.masked.tolist() == copies(one).source.tolist() == [10, 11, 12, 13]


def test_rows_of_many_documents_have_the_counted_tokens() -> None:
    rng = np.random.default_rng(0)
    items = [
        text(int(length), int(rng.integers(0, length))) for length in rng.integers(2, 40, size=5000)
    ]
    for item in items[::3]:  # an earlier turn was learned too
        item.supervised[: item.prompt : 7] = True
    offsets = np.concatenate([[0], np.cumsum([item.ids.size for item in items])])
    supervised = np.concatenate([item.supervised for item in items])
    blocks = Blocks(size=4, views=2)
    found = blocks.row_tokens(np.diff(offsets), supervised, offsets)
    assert found.tolist() == [row(item, blocks).noisy.size for item in items]


def test_a_shift_predicts_from_the_token_before() -> None:
    """Within a block it is the noisy one; before a block it is the clean one."""
    one = row(text(8), Blocks(size=4, shift=True), t=1.0)
    assert one.masked.tolist() == [9, 10, 11, 12, 13, 14, 15], "never the first token"
    assert copies(one).source.tolist() == [8, 9, 10, 3, 12, 13, 14]
    assert one.count == 7


def test_next_tokens_are_predicted_on_the_clean_document() -> None:
    blocks = Blocks(size=4, causal=True, ar_weight=0.25)
    one = row(text(8, prompt=4), blocks, t=1.0)
    assert one.masked.tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert copies(one).source.tolist() == [3, 4, 5, 6, 8, 9, 10, 11]
    assert one.weight.tolist() == [*[0.25] * 4, *[1.0] * 4]
    assert one.count == 4
    assert row(text(8, prompt=4), blocks.held_out()).masked.min() >= 8


def test_a_document_with_nothing_to_learn_has_no_copy() -> None:
    one = row(text(5, prompt=5), Blocks(size=4, views=2))
    assert (one.noisy.size, one.masked.size, one.count) == (5, 0, 0)


@pytest.mark.parametrize(
    ("norm", "scale", "count"),
    [("token", 1, 4), ("sequence", 1 / 4, 1), ("masked", 1, 2), ("batch", 1, 1)],
)
def test_every_norm_divides_by_its_own(norm: str, scale: float, count: float) -> None:
    one = row(text(8, prompt=4), Blocks(size=4, half_life=0.1), norm=norm)
    assert one.weight.tolist() == pytest.approx([2 * scale] * 2)
    assert one.count == count


# --- masks


@pytest.mark.parametrize(
    ("half_life", "t", "wanted"),
    [
        (0.1, 0.5, (0.1309, 0.3037, 0.6675, 0.8979)),
        (0.1, 0.25, (0.0148, 0.0544, 0.1994, 0.7314)),
        (0.25, 0.5, (0.3127, 0.4261, 0.5643, 0.6968)),
    ],
)
def test_inclusion_probabilities_are_those_of_the_table(
    half_life: float, t: float, wanted: tuple[float, ...]
) -> None:
    block = np.repeat(np.arange(DRAWS), 4)
    levels = Levels.of("linear", [t] * DRAWS, [4] * DRAWS)
    drawn = draw_masks(block, DRAWS, levels, "exact", half_life, np.random.default_rng(1))
    masked = drawn.masked.reshape(DRAWS, 4)
    assert (masked.sum(1) == round(4 * t)).all()
    assert masked.mean(0).tolist() == pytest.approx(wanted, abs=0.01 * max(wanted))


@pytest.mark.parametrize(("size", "share"), [(2, 0.1667), (4, 0.1266), (8, 0.0764), (32, 0.0219)])
def test_shares_of_blocks_with_a_forced_mask(size: int, share: float) -> None:
    """A forced mask is one that the clipped probability alone did not draw."""
    times = np.random.default_rng(2).random(DRAWS)
    levels = Levels.of("linear", times.tolist(), [size] * DRAWS)
    block = np.repeat(np.arange(DRAWS), size)
    rng = np.random.default_rng(3)
    drawn = draw_masks(block, DRAWS, levels, "bernoulli", 0.0, rng)
    counts = drawn.masked.reshape(DRAWS, size).sum(1)
    clip = np.maximum(times, 1 / size)
    alone = np.random.default_rng(3).random(DRAWS * size).reshape(DRAWS, size) < clip[:, None]
    assert (alone.sum(1) == 0).mean() == pytest.approx(share, abs=0.003)
    assert (counts == np.maximum(alone.sum(1), 1)).all()
    forced = drawn.masked.reshape(DRAWS, size)[alone.sum(1) == 0]
    spread = 5 * (1 / size / len(forced)) ** 0.5
    assert forced.mean(0).tolist() == pytest.approx([1 / size] * size, abs=spread)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_clip_weighs_by_the_clipped_probability(schedule: str) -> None:
    levels = clipped(Levels.of(schedule, [0.01, 0.9], [4, 4]), np.array([4, 2]), schedule)
    assert levels.probability[0] == 0.25
    assert Levels.of(schedule, levels.t, levels.tokens).probability == pytest.approx(
        levels.probability
    )
    if schedule == "linear":
        one = row(text(4), Blocks(size=4), t=0.01)
        assert set(one.weight.tolist()) == {4.0}


@pytest.mark.parametrize("t", [0.001, 0.3, 0.75, 1.0])
def test_exact_counts_round_up_and_keep_the_expected_weight(t: float) -> None:
    one = row(text(8), Blocks(size=4), t=t, mask_count="exact")
    per_block = int(np.ceil(4 * t - 1e-9))
    assert one.masked.size == 2 * per_block
    assert one.weight.sum() == pytest.approx(8, rel=1e-6), "w(t) p L' / l, l times"


def test_exact_masks_weigh_one_a_token_at_any_time() -> None:
    """So the loss of uniform logits is ln V, and that of an evaluation is the bound."""
    held_out = Blocks(size=8, views=2, half_life=0.1, ar_weight=0.0).held_out()
    for t in (0.001, 0.1, 0.6, 1.0):
        assert row(text(64), held_out, t).weight.sum() / 64 == pytest.approx(1.0)


def test_clipped_masks_weigh_what_the_forced_ones_add() -> None:
    """A forced mask weighs 1 / u, in a share (1 - u)^B of the blocks: 0.07 a token for B = 8."""
    blocks, how = Blocks(size=8), rules()
    items = [text(64, index=number) for number in range(400)]
    found = [
        blocks.corrupt(item, levels, how.noise, how.loss)[0].weight.sum() / 64
        for item, levels in zip(items, blocks.levels(items, how.noise), strict=True)
    ]
    u = np.maximum(np.linspace(0, 1, 10_001)[:-1], 1 / 8)
    assert np.mean(found) == pytest.approx(1 + ((1 - u) ** 8 / (8 * u)).mean(), abs=0.05)


# --- two copies


@pytest.mark.parametrize("noise", [{}, {"mask_count": "exact"}])
@pytest.mark.parametrize("half_life", [0.0, 0.1])
@pytest.mark.parametrize("t", [0.001, 0.4, 1.0])
def test_two_copies_mask_each_learned_token_once(
    t: float, half_life: float, noise: dict[str, Any]
) -> None:
    item = text(11, prompt=3)
    one = row(item, Blocks(size=4, views=2, half_life=half_life), t=t, **noise)
    places = copies(one).position[one.masked]
    assert sorted(places.tolist()) == list(range(3, 11))
    assert one.weight.tolist() == [1.0] * 8
    assert one.count == 8, "a supervised token counts once"
    first, second = (copies(one).copy == number for number in (1, 2))
    assert first.sum() == second.sum() == 11, "even where a copy has nothing masked"


# --- levels


def levels(blocks: Blocks, items: list[Item], **noise: Any) -> list[Levels]:
    return blocks.levels(items, Noise(**{"seed": 3, "mask_id": MASK, **noise}))


ITEMS = [text(length, length // 2, index) for index, length in enumerate((40, 9, 23, 64))]


def test_times_are_stratified_over_the_blocks_of_a_step() -> None:
    times = [t for one in levels(Blocks(size=4), ITEMS) for t in one.t]
    assert len(times) == sum(
        len(set(range(n // 2 // 4, (n - 1) // 4 + 1))) for n in (40, 9, 23, 64)
    )
    parts = np.floor((np.array(times) - EPSILON) / (1 - EPSILON) * len(times)).astype(int)
    assert sorted(parts.tolist()) == list(range(len(times)))
    assert parts.tolist() != sorted(parts.tolist()), "in a drawn order"


def test_times_follow_seed_pass_and_the_first_document() -> None:
    blocks, same = Blocks(size=4), levels(Blocks(size=4), ITEMS)
    assert levels(blocks, ITEMS) == same
    assert levels(blocks, ITEMS, seed=4) != same
    assert levels(blocks, [replace(item, pass_=1) for item in ITEMS]) != same
    assert levels(blocks, [replace(ITEMS[0], ordinal=9), *ITEMS[1:]]) != same


def test_times_stay_in_their_range() -> None:
    for sampling in ("iid", "stratified"):
        found = levels(Blocks(size=4), ITEMS, t_min=0.3, t_max=0.8, t_sampling=sampling)
        assert all(0.3 <= t < 0.8 for one in found for t in one.t)


def test_own_times_of_a_document_depend_on_nothing_else() -> None:
    alone = [levels(Blocks(size=4), [item], t_sampling="iid")[0] for item in ITEMS]
    assert levels(Blocks(size=4), ITEMS, t_sampling="iid") == alone


def test_an_evaluation_draws_one_time_for_each_document() -> None:
    held_out = Blocks(size=4, views=2, half_life=0.1, warmup=5).at(0, 0).held_out()
    found = levels(held_out, ITEMS)
    assert all(len(set(one.t)) == 1 for one in found)
    assert [levels(held_out, [item])[0] for item in ITEMS] == found, (
        "whatever is evaluated beside it"
    )
    assert row(ITEMS[0], held_out).weight.max() > 1
    assert copies(row(ITEMS[0], held_out)).copy.max() == 1


# --- steps


def test_the_warm_up_raises_the_highest_time_at_weight_one() -> None:
    blocks, many = Blocks(size=4, warmup=10), [text(64, index=n) for n in range(8)]
    tops = []
    for step, wanted in ((0, 1e-3), (5, 0.5005), (9, 0.9001)):
        now = blocks.at(step, 0)
        times = np.array([t for one in levels(now, many) for t in one.t])
        assert times.max() < wanted
        assert times.max() > 0.95 * wanted
        tops.append(times.max())
        assert set(row(many[0], now, t=0.2).weight.tolist()) == {1.0}
    after = blocks.at(10, 0)
    assert max(t for one in levels(after, many) for t in one.t) > 0.98
    assert row(many[0], after, t=0.5, mask_count="exact").weight[0] == 2.0


@pytest.mark.parametrize(
    ("tokens", "size"), [(0, 1), (99, 1), (100, 4), (5000, 4), (10_000, 16), (10**12, 16)]
)
def test_the_block_size_follows_the_tokens_of_the_run(tokens: int, size: int) -> None:
    blocks = Blocks(size=16, schedule=read_schedule("[[0, 1], [100, 4], [10000, 16]]"))
    assert blocks.at(3, tokens).size == size
    assert blocks.held_out().size == 16
    assert Blocks(size=16, schedule=read_schedule("")).at(3, tokens).size == 16


def test_the_predictions_of_a_token_are_foretold() -> None:
    assert Blocks(size=4).predicted(0.5) == 0.5
    assert Blocks(size=4, views=2).predicted(0.5) == 1
    assert Blocks(size=4, ar_weight=0.1).predicted(0.5) == 1.5
