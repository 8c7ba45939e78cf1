"""CART against the double sum and hand-worked numbers, and the spelling of its name."""

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
def test_cart_weights_worked_by_hand(p, expected):
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
def test_loss_weight_type_accepted_spellings(text, parsed):
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
def test_loss_weight_type_other_spellings_are_refused(text):
    with pytest.raises(
        ValueError, match=r"cart\[geo_p:P\] with 0 < P <= 1, scheduler or uniform"
    ) as error:
        parse_loss_weight_type(text)
    assert repr(text) in str(error.value)
