"""Warnings of shapes that are slow on GPUs."""

from __future__ import annotations

import pytest

from plugin.planning.shapes import slow_shapes
from plugin.planning.sizes import SIZES

GOOD = {
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_attention_heads": 12,
    "vocab_size": 50_368,
}


def found(**changes: int) -> list[tuple[str, int]]:
    return [(one.field, one.better) for one in slow_shapes({**GOOD, **changes})]


def test_a_good_shape_has_no_warning() -> None:
    assert found() == []
    assert found(num_attention_heads=6) == []


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"hidden_size": 780}, [("hidden_size", 768), ("num_attention_heads", 12)]),
        ({"intermediate_size": 1000}, [("intermediate_size", 1024)]),
        ({"vocab_size": 50_257}, [("vocab_size", 50_304)]),
        ({"num_attention_heads": 16}, [("num_attention_heads", 12)]),
        ({"num_attention_heads": 3}, [("num_attention_heads", 6)]),
        (
            {"hidden_size": 30, "num_attention_heads": 2},
            [("hidden_size", 64), ("num_attention_heads", 1)],
        ),
    ],
)
def test_a_warning_names_field_and_nearest_value(
    changes: dict[str, int], warned: list[tuple[str, int]]
) -> None:
    assert found(**changes) == warned


def test_a_published_size_uses_its_own_field_names() -> None:
    warned = [one.line for one in slow_shapes(SIZES[75].config(32_001))]
    assert warned == [
        "warning: embedding_size: 32001 is no multiple of 64 rows; the nearest good value is 32064",
        "warning: n_heads: 8 makes heads 80 wide, not 64 or 128; the nearest good value is 10",
    ]
