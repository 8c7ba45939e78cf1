"""CART against the double sum and hand-worked numbers, the spelling of its name, and the
cutoffs.
"""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from plugin.objectives.dream import (
    Cart,
    Scheduler,
    Uniform,
    cart_weights,
    cutoff_lengths,
    parse_loss_weight_type,
)


def bits(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


def by_definition(masked: np.ndarray, p: float) -> np.ndarray:
    """The double sum as the report writes it."""
    weight = np.zeros(len(masked))
    for n in np.flatnonzero(masked):
        weight[n] = sum(p / 2 * (1 - p) ** (abs(n - i) - 1) for i in np.flatnonzero(~masked))
    return weight


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.3, [0, 0, 0.364515, 0.33495, 0.34845, 0, 0.3612255, 0]),
        (1.0, [0, 0, 0.5, 0, 0.5, 0, 1, 0]),
    ],
)
def test_cart_oracle(p, expected):
    np.testing.assert_allclose(cart_weights(bits("00111010"), p), expected, atol=1e-15)


def test_cart_edges():
    assert cart_weights(bits("1111"), 0.3).tolist() == [0, 0, 0, 0]  # no context, no weight
    assert cart_weights(bits("0000"), 0.3).tolist() == [0, 0, 0, 0]
    assert cart_weights(bits("1"), 1.0).tolist() == [0]
    assert cart_weights(bits(""), 0.5).shape == (0,)
    assert cart_weights(bits("01"), 0.5).dtype == np.float64


def test_cart_is_the_double_sum():
    rng = np.random.default_rng(0)
    for p in (1e-3, 0.1, 0.3, 0.5, 0.999, 1.0):
        masked = rng.random(97) < rng.random()
        np.testing.assert_allclose(
            cart_weights(masked, p), by_definition(masked, p), rtol=1e-12, atol=1e-15
        )


def test_cart_of_a_long_run_between_two_words():
    """Closed form: k masked between single words, the j-th weighs p/2 (q^j + q^(k-1-j))."""
    k, p = 500, 0.1
    weight = cart_weights(np.r_[False, np.ones(k, bool), False], p)[1:-1]
    j = np.arange(k)
    np.testing.assert_allclose(weight, p / 2 * (0.9**j + 0.9 ** (k - 1 - j)), rtol=1e-10)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_cart_at_8192_is_quick_and_small(ratio):
    masked = np.random.default_rng(1).random(8192) < ratio
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        cart_weights(masked, 0.3)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.02
    tracemalloc.start()
    cart_weights(masked, 0.3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6  # bytes; a (T, T) matrix has 512 MB


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("cart[geo_p:0.3]", Cart(0.3)),
        ("cart[geo_p:.5]", Cart(0.5)),
        ("cart[geo_p:1.0]", Cart(1.0)),
        ("cart[geo_p:1]", Cart(1.0)),
        ("cart[geo_p:1.]", Cart(1.0)),
        ("cart[geo_p:0.001]", Cart(0.001)),
        ("scheduler", Scheduler()),
        ("uniform", Uniform()),
    ],
)
def test_spellings(text, parsed):
    assert parse_loss_weight_type(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "cart",
        "cart[geo_p:1.5]",
        "cart[geo_p:0]",
        "cart[geo_p:0.0]",
        "cart[geo_p:-0.3]",
        "cart[geo_p:nan]",
        "cart[geo_p:.]",
        "cart[geo_p:]",
        "cart[geo_p:0.3",
        "cart[p:0.3]",
        "Cart[geo_p:0.3]",
        " cart[geo_p:0.3]",
        "cart[geo_p:0.3]\n",
        "cart[geo_p:\u0660.\u0663]",  # digits of another script
        "",
        "schedule",
        "uniform ",
    ],
)
def test_other_spellings_are_errors_that_say_what_is_allowed(text):
    with pytest.raises(
        ValueError, match=r"cart\[geo_p:P\] with 0 < P <= 1, scheduler or uniform"
    ) as error:
        parse_loss_weight_type(text)
    assert repr(text) in str(error.value)


def draws(lengths, count=4000, **options):
    rng = np.random.default_rng(7)
    return np.array([cutoff_lengths(np.array(lengths), rng=rng, **options) for _ in range(count)])


def test_no_cutoff_is_the_identity_and_leaves_its_argument_alone():
    lengths = np.array([5, 9, 2])
    assert cutoff_lengths(
        lengths, perbatch=False, resp_ratio=0.0, rng=np.random.default_rng(0)
    ).tolist() == [5, 9, 2]
    cutoff_lengths(lengths, perbatch=True, resp_ratio=1.0, rng=np.random.default_rng(0))
    assert lengths.tolist() == [5, 9, 2]


def test_perbatch_takes_each_documents_length_equally_often():
    kept = draws([5, 9, 2], perbatch=True, resp_ratio=0.0)
    outcomes, counts = np.unique(kept, axis=0, return_counts=True)
    assert outcomes.tolist() == [[2, 2, 2], [5, 5, 2], [5, 9, 2]]
    assert (abs(counts / 4000 - 1 / 3) < 0.03).all()


def test_response_cut_is_one_uniform_number_from_every_end():
    lengths = np.array([5, 9, 12])
    cut = lengths - draws(lengths, perbatch=False, resp_ratio=0.25)
    assert (cut == cut[:, :1]).all()  # the same number for all
    values, counts = np.unique(cut[:, 0], return_counts=True)
    assert values.tolist() == [0, 1, 2, 3, 4]  # 0 where the coin says no, else 1..shortest-1
    assert abs(counts[0] / 4000 - 0.75) < 0.03
    assert (abs(counts[1:] / 4000 - 0.25 / 4) < 0.015).all()


def test_the_two_cuts_combine():
    """dLLM makes them exclusive.

    Here [3, 8] can become [1, 1]: first both to 3, then 2 off both.
    """
    kept = {tuple(row) for row in draws([3, 8], perbatch=True, resp_ratio=1.0).tolist()}
    assert kept == {(2, 2), (1, 1), (2, 7), (1, 6)}


def test_the_only_response_token_stays():
    assert (draws([1, 8], perbatch=True, resp_ratio=1.0) >= 1).all()
    assert draws([1, 8], perbatch=False, resp_ratio=1.0).tolist() == [[1, 8]] * 4000
    assert draws([1], perbatch=True, resp_ratio=1.0, count=10).tolist() == [[1]] * 10


def test_documents_without_a_response_neither_cut_nor_are_cut():
    kept = draws([0, 6, 4], perbatch=True, resp_ratio=0.5)
    assert (kept[:, 0] == 0).all()
    assert (kept[:, 1:] >= 1).all()
    assert draws([0, 0], perbatch=True, resp_ratio=1.0, count=3).tolist() == [[0, 0]] * 3
    assert draws([], perbatch=True, resp_ratio=1.0, count=2).shape == (2, 0)
