"""Token clock: sizes of steps, tokens up to them, and the steps that a number of tokens takes."""

from __future__ import annotations

from itertools import accumulate

import pytest

from plugin.training.token_clock import TokenClock, thresholds, token_clock


def test_thresholds_equal_those_of_the_published_recipe() -> None:
    """ModernBERT's batch warm-up: 50 billion tokens, 8 GPUs, 1 to 6 micro-batches."""
    wanted = [416666667, 1250000000, 2500000000, 4166666667, 6250000000]
    assert thresholds(50_000_000_000, 6, 8) == wanted


def test_sizes_rise_after_equal_numbers_of_steps() -> None:
    """96 rows of 1,024 tokens: the five sizes take 4,239 steps each, give or take a rounding."""
    clock = token_clock(pack=96 * 1024, largest=6, devices=8, warmup=50_000_000_000)
    steps = [end - begin for begin, end in zip((0, *clock.ends), clock.ends, strict=False)]
    assert max(steps) - min(steps) <= 1
    assert steps[0] == 4239  # 416,666,667 / 98,304 = 4,238.6
    edges = [(clock.micro_batches(end - 1), clock.micro_batches(end)) for end in clock.ends]
    assert edges == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]


@pytest.mark.parametrize("warmup", [0, 1, 7, 100, 1000, 12345])
@pytest.mark.parametrize("largest", [1, 2, 3, 6])
@pytest.mark.parametrize("devices", [1, 3])
def test_closed_form_equals_a_walk_over_the_steps(warmup: int, largest: int, devices: int) -> None:
    """A walk raises the size whenever the tokens of a device reach the next threshold."""
    pack, limits = 10, thresholds(warmup, largest, devices) if warmup else []
    clock = token_clock(pack=pack, largest=largest, devices=devices, warmup=warmup)
    tokens, size, sizes = 0, 1 if warmup else largest, list[int]()
    for _ in range(500):
        while size < largest and tokens >= limits[size - 1]:
            size += 1
        sizes.append(size)
        tokens += size * pack
    assert [clock.micro_batches(step) for step in range(500)] == sizes
    sums = [0, *accumulate(size * pack * devices for size in sizes)]
    assert [clock.after(steps) for steps in range(501)] == sums
    for total in (1, 9, 10, 11, sums[17] - 1, sums[17], sums[17] + 1, sums[400]):
        assert clock.steps(total) == next(k for k, sum_ in enumerate(sums) if sum_ >= total)


def test_long_run_needs_no_loop_over_its_steps() -> None:
    clock = TokenClock(unit=8 * 96 * 1024, largest=6)
    assert clock.steps(1_719_000_000_000) == 364304  # 1.719e12 / 4,718,592 = 364,303.6
