"""Duplicates: linear edges, verified; clusters; who survives."""

from __future__ import annotations

import numpy as np
import pytest

from plugin.corpus.duplicates import (
    candidate_edges,
    describe_clusters,
    exact_edges,
    neighbours_only,
    similarity,
    smallest_members,
    verified_edges,
)

NONE = np.zeros((0, 2), np.int64)


def pairs(*edges: tuple[int, int]) -> np.ndarray:
    return np.array(edges, np.int64).reshape(-1, 2)


def test_candidates_are_linked_to_the_first_and_the_one_before() -> None:
    keys = np.array([7, 3, 7, 9, 7, 3], np.uint64)
    places = np.array([0, 2, 4, 6, 8, 10])
    found = candidate_edges(keys, places)
    assert found.tolist() == [[0, 4], [0, 8], [2, 10], [4, 8]]
    assert candidate_edges(keys[:2], places[:2]).shape == (0, 2)
    assert candidate_edges(keys[:0], places[:0]).shape == (0, 2)


def test_ten_thousand_copies_cost_a_linear_number_of_edges() -> None:
    keys = np.full(10_000, 5, np.uint64)
    assert len(candidate_edges(keys, np.arange(10_000))) == 2 * 9_999 - 1


def test_similarity_is_corrected_for_chance() -> None:
    draw = np.random.default_rng(1)
    one, other = (draw.integers(0, 256, (400, 250), dtype=np.uint8) for _ in range(2))
    assert similarity(one, one).tolist() == [1.0] * 400
    assert abs(similarity(one, other).mean()) < 1e-3


def test_only_similar_pairs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugin.corpus.duplicates._TOGETHER", 2)
    low = np.zeros((5, 100), np.uint8)
    low[3, :20], low[4, :40] = 1, 1
    edges = pairs((0, 1), (0, 3), (0, 4), (1, 3), (2, 4))
    found, alike = verified_edges(edges, lambda documents: low[documents], 0.75)
    assert found.tolist() == [[0, 1], [0, 3], [1, 3]]
    assert alike == pytest.approx([1, (0.8 - 1 / 256) / (1 - 1 / 256)] + [0.7992] * 1, abs=1e-3)


def test_exact_edges_link_to_the_first_of_a_digest() -> None:
    digests = np.array([[1, 2], [3, 4], [1, 2], [1, 9], [3, 4], [1, 2]], np.uint64)
    found = exact_edges(digests)
    assert sorted(map(tuple, found.tolist())) == [(0, 2), (0, 5), (1, 4)]


def test_smallest_member_of_a_cluster_is_found_along_any_path() -> None:
    draw = np.random.default_rng(2)
    count, labels = 500, np.arange(500)
    edges = draw.integers(0, count, (300, 2))
    for _ in range(count):  # the definition, step by step
        for one, other in edges.tolist():
            labels[[one, other]] = min(labels[one], labels[other])
    assert np.array_equal(smallest_members(count, edges), labels)
    chain = np.stack([np.arange(1, 2000)[::-1], np.arange(1999)[::-1]], 1)
    assert not smallest_members(2000, chain).any()
    assert np.array_equal(smallest_members(3, NONE), np.arange(3))


def test_neighbours_keep_the_end_of_a_chain() -> None:
    chain = pairs((0, 1), (1, 2), (2, 3))
    assert smallest_members(4, chain).tolist() == [0, 0, 0, 0]
    assert neighbours_only(4, chain).tolist() == [0, 0, 2, 2]


def test_clusters_name_their_size_and_least_similar_pair() -> None:
    edges, alike = pairs((0, 2), (2, 5), (3, 4)), np.array([0.9, 0.8, 0.95])
    found = describe_clusters(smallest_members(6, edges), edges, alike)
    assert (found.count, found.sizes) == (2, {3: 1, 2: 1})
    assert found.largest == ((0, 3, 0.8), (3, 2, 0.95))
    assert describe_clusters(np.arange(4), NONE, np.zeros(0)).count == 0
