"""Published sizes: every number of parameters, and the config.json that has exactly these weights."""

from __future__ import annotations

import pytest

from plugin.planning.sizes import SIZES, Size, nearest_size

# L (4 d^2 + 3 d f) + (2 L + 1) d, each worked from the published layers, width and inner width.
PARAMETERS = {
    6: 6_294_784,
    19: 18_880_896,
    34: 33_563_136,
    48: 47_786_688,
    66: 65_549_440,
    75: 75_387_520,
    85: 85_214_080,
    113: 113_265_408,
    142: 141_581_568,
    170: 169_897_728,
    180: 179_856_768,
    206: 205_550_464,
    231: 231_244_160,
    268: 268_469_248,
    302: 302_027_776,
    336: 335_586_304,
    472: 471_906_560,
    551: 550_557_440,
    571: 571_001_728,
    629: 629_208_320,
    666: 666_168_448,
    717: 717_285_888,
    761: 761_335_168,
    831: 830_541_312,
    944: 943_796_736,
    1028: 1_027_677_952,
    1233: 1_233_213_184,
    1476: 1_476_487_168,
    1678: 1_677_826_048,
    2121: 2_121_393_280,
}


def by_hand(layers: int, width: int, inner: int) -> int:
    """Return the weights of a model, summed matrix by matrix."""
    layer = [(width, width)] * 4 + [(width, inner)] * 3
    matrices = sum(rows * columns for rows, columns in layer)
    return layers * (matrices + 2 * width) + width


def test_all_thirty_sizes_are_exact() -> None:
    assert {name: size.parameters for name, size in SIZES.items()} == PARAMETERS
    assert len(SIZES) == 30


@pytest.mark.parametrize("size", SIZES.values(), ids=str)
def test_a_size_is_the_sum_of_its_matrices(size: Size) -> None:
    assert size.parameters == by_hand(size.layers, size.width, size.inner)
    assert abs(size.parameters / 1e6 - size.name) < 1
    assert size.width % size.heads == 0


@pytest.mark.parametrize(("parameters", "name"), [(1, 6), (7e7, 66), (1e9, 1028), (1e12, 2121)])
def test_the_nearest_size_is_by_ratio(parameters: float, name: int) -> None:
    assert nearest_size(parameters).name == name
