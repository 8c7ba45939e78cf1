"""Duplicates: candidate pairs of a band, verified, and the documents that survive.

D documents in the order of the sources, E edges (pairs of documents, the smaller number first).
Bands are sorted, and each document is compared with the first and the last one before it of equal
key: the number of edges is linear in D, whatever the size of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Least similarity of the signatures' low bytes: two different values share one by chance.
_CHANCE = 1 / 256
_TOGETHER = 1 << 13  # edges that are verified together

# Rows of the low bytes of signatures, [n, P], for the numbers [n] of documents.
Rows = Callable[[NDArray[np.int64]], NDArray[np.uint8]]


def candidate_edges(keys: NDArray[np.uint64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs of documents of equal key, [E, 2], sorted.

    `keys` [n] of one band; `places` [n] are the documents' numbers, ascending.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    members = np.flatnonzero(same) + 1
    # the first of a member's run: the last place up to it that begins a run
    begins = np.where(np.concatenate([[False], same]), 0, np.arange(keys.size))
    first = np.maximum.accumulate(begins)[members]
    found = places[order]
    pairs = np.concatenate(
        [
            np.stack([found[first], found[members]], 1),
            np.stack([found[members - 1], found[members]], 1),
        ]
    )
    return np.unique(pairs, axis=0)


def similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimate the Jaccard similarity of pairs [n] from the low bytes of signatures, [n, P].

    The share of equal bytes, corrected for chance (Li and Koenig 2010, "b-bit minwise hashing").
    """
    return (np.mean(one == other, axis=1) - _CHANCE) / (1 - _CHANCE)


def verified_edges(
    edges: NDArray[np.int64], rows: Rows, least: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs [E, 2] that are at least `least` similar, and their similarities [E]."""
    kept: list[NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    found: list[NDArray[np.float64]] = [np.zeros(0)]
    for start in range(0, len(edges), _TOGETHER):
        some = edges[start : start + _TOGETHER]
        alike = similarity(rows(some[:, 0]), rows(some[:, 1]))
        kept.append(some[alike >= least])
        found.append(alike[alike >= least])
    return np.concatenate(kept), np.concatenate(found)


def exact_edges(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return (first document of this digest, other document of it), [E, 2]; `digests` [D, 2]."""
    alike = _repeated(digests[:, 0])  # most documents have no copy: the rest is done for few
    some = digests[alike]
    order = np.lexsort((some[:, 1], some[:, 0]))  # stable
    ordered = some[order]
    same = (ordered[1:] == ordered[:-1]).all(1)
    begins = np.where(np.concatenate([[False], same]), 0, np.arange(alike.size))[: alike.size]
    members = np.flatnonzero(same) + 1
    first = np.maximum.accumulate(begins)[members]
    return np.stack([alike[order[first]], alike[order[members]]], 1)


def _repeated(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the places of values that occur more than once, ascending."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    same = ordered[1:] == ordered[:-1]
    found = np.zeros(values.size, bool)
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    return np.flatnonzero(found)


def smallest_members(count: int, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the smallest document of each one's cluster, [count]: edges link clusters."""
    labels = np.arange(count)
    one, other = edges[:, 0], edges[:, 1]
    while True:
        least = np.minimum(labels[one], labels[other])
        before = labels.copy()
        np.minimum.at(labels, before[one], least)
        np.minimum.at(labels, before[other], least)
        while True:  # every label points to a label that points to itself
            further = labels[labels]
            if np.array_equal(further, labels):
                break
            labels = further
        if np.array_equal(labels, before):
            return labels


def neighbours_only(count: int, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the kept document that each one duplicates, itself if it is kept, [count].

    A document goes only if an edge links it to one that stays, in the order of their numbers: of a
    chain A-B-C in which A and C differ, B goes and C stays.
    """
    twins = np.arange(count)
    for smaller, larger in edges[np.lexsort((edges[:, 0], edges[:, 1]))].tolist():
        if twins[larger] == larger and twins[smaller] == smaller:
            twins[larger] = smaller
    return twins


@dataclass(frozen=True)
class Clusters:
    """Clusters of near-duplicates, for the report."""

    count: int
    sizes: dict[int, int]  # size -> clusters of it
    largest: tuple[tuple[int, int, float], ...]  # (smallest member, size, least similar edge)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def describe_clusters(
    labels: NDArray[np.int64],
    edges: NDArray[np.int64],
    alike: NDArray[np.float64],
    most: int = 10,
) -> Clusters:
    """Count the clusters that `edges` [E, 2] of similarity `alike` [E] link into `labels` [D]."""
    members = np.unique(edges)
    heads, sizes = np.unique(labels[members], return_counts=True)
    least = np.ones(heads.size)
    np.minimum.at(least, np.searchsorted(heads, labels[edges[:, 0]]), alike)
    order = np.lexsort((heads, -sizes))[:most]
    largest = zip(heads[order].tolist(), sizes[order].tolist(), least[order].tolist(), strict=True)
    counts = dict(zip(*map(np.ndarray.tolist, np.unique(sizes, return_counts=True)), strict=True))
    return Clusters(heads.size, counts, tuple(largest))
