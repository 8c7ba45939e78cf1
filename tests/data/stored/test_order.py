"""Order over stored documents: bijective, mixed, even over passes for any weight."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from plugin.data.stored.order import Bijection, Order


def image(n: int, *key: int) -> np.ndarray:
    return Bijection(n, key)(np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 16, 17, 1000, 65537])
def test_every_number_comes_exactly_once(n: int) -> None:
    assert np.array_equal(np.sort(image(n, 7)), np.arange(n))


def test_image_is_a_function_of_key_and_place() -> None:
    every = image(1000, 1, 2)
    assert np.array_equal(every, image(1000, 1, 2))
    assert np.array_equal(Bijection(1000, (1, 2))(np.array([5, 999])), every[[5, 999]])
    for other in (image(1000, 1, 3), image(1000, 2, 2), image(1000, 1)):
        assert np.mean(other == every) < 0.02


def test_small_domains_take_every_order() -> None:
    """Of four numbers every one of the 24 orders comes, none far more often than the others."""
    counts = Counter(tuple(image(4, key).tolist()) for key in range(2400))
    assert len(counts) == 24
    assert max(counts.values()) < 3 * min(counts.values())


@pytest.mark.parametrize("n", [10_000, 65_537, 300_000])
def test_neighbours_land_in_unrelated_places(n: int) -> None:
    """Bounds lie at five standard deviations of a random permutation."""
    every = image(n, 11)
    line = np.arange(n)
    assert abs(np.corrcoef(every, line)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(every[:-1], every[1:])[0, 1]) < 5 / np.sqrt(n)
    # The step to the next image modulo n is uniform: chi-square with 99 degrees of freedom.
    steps = np.diff(every) % n * 100 // n
    counts, wanted = np.bincount(steps, minlength=100), (n - 1) / 100
    assert np.sum((counts - wanted) ** 2 / wanted) < 99 + 5 * np.sqrt(2 * 99)
    # Of each stretch of the line, every part of the range gets its share.
    table = np.histogram2d(line, every, bins=10)[0]
    assert np.sum((table - n / 100) ** 2 / (n / 100)) < 81 + 5 * np.sqrt(2 * 81)


def test_large_domain_needs_no_memory_and_little_time() -> None:
    tracemalloc.start()
    some = Bijection(10**12, (1,))(np.arange(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    assert np.unique(some).size == 1000
    assert some.max() < 10**12
    began = time.process_time()
    Bijection(3 * 10**6, (1,))(np.arange(300_000))
    assert time.process_time() - began < 3.0


def passes(order: Order, count: int) -> list[Counter[tuple[int, int]]]:
    found = []
    for pass_ in range(count):
        places = order.at(pass_, np.arange(len(order)))
        pairs = zip(places.sources.tolist(), places.documents.tolist(), strict=True)
        found.append(Counter(pairs))
    return found


def test_weight_2_gives_each_document_twice_a_pass() -> None:
    for found in passes(Order([10, 7], [2.0, 1.0], 3), 3):
        assert found == {(0, n): 2 for n in range(10)} | {(1, n): 1 for n in range(7)}


def test_half_a_weight_gives_all_documents_in_two_passes() -> None:
    first, second = passes(Order([10], [0.5], 3), 2)
    assert first.total() == second.total() == 5
    assert first + second == {(0, n): 1 for n in range(10)}


@pytest.mark.parametrize("weight", [0.01, 0.3, 0.77, 1.0, 1.5, 3.14])
def test_documents_come_equally_often_over_passes(weight: float) -> None:
    found = sum(passes(Order([13, 40], [weight, 1.0], 5), 26), Counter())
    counts = [found[0, number] for number in range(13)]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == 26 * max(1, round(weight * 13))
    assert {found[1, number] for number in range(40)} == {26}


def test_visits_count_the_earlier_ones_of_a_document() -> None:
    order = Order([5, 8], [1.7, 0.4], 1)
    seen: Counter[tuple[int, int]] = Counter()
    for pass_ in range(6):
        places = order.at(pass_, np.arange(len(order)))
        visits: dict[tuple[int, int], list[int]] = {}
        columns = (places.sources, places.documents, places.visits)
        for source, document, visit in zip(*(one.tolist() for one in columns), strict=True):
            visits.setdefault((source, document), []).append(visit)
        for one, numbers in visits.items():
            assert sorted(numbers) == list(range(seen[one], seen[one] + len(numbers)))
            seen[one] += len(numbers)


def test_passes_and_seeds_have_their_own_orders() -> None:
    def order(seed: int, pass_: int) -> list[int]:
        return Order([50], [1.0], seed).at(pass_, np.arange(50)).documents.tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_sources_are_mixed_within_a_pass() -> None:
    sources = Order([500, 500], [1.0, 1.0], 1).at(0, np.arange(1000)).sources
    assert 160 < np.sum(sources[:400] == 0) < 240, "five standard deviations"


def test_source_without_documents_has_no_slots() -> None:
    order = Order([0, 3], [2.0, 1.0], 1)
    assert order.slots == [0, 3]
    assert set(order.at(0, np.arange(3)).sources.tolist()) == {1}
    assert len(Order([0], [1.0], 1)) == len(Order([], [], 1)) == 0
