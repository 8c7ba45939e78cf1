"""Seeds: worked values, which hold on every machine."""

from __future__ import annotations

from plugin.training.seeds import seed_of


def test_seeds_are_fixed_and_depend_on_every_number() -> None:
    assert seed_of(0) == 15793235383387715774 >> 1
    assert seed_of(42, 7, 1) == 4914442648729745993
    seeds = {seed_of(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64
