"""MinHash signatures: datasketch's, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from helpers.corpora import sentences

from plugin.corpus.signatures import Scheme, shingle_hashes, sign

pytestmark = pytest.mark.datatrove


def by_datasketch(texts: Sequence[str], scheme: Scheme) -> list[np.ndarray]:
    """Return each text's signature as datasketch makes it of the same shingle hashes."""
    import datasketch  # installed aside: see the Makefile

    hashes, counts = shingle_hashes(texts, scheme)
    found = []
    for values in np.split(hashes, np.cumsum(counts)[:-1]):
        sketch = datasketch.MinHash(
            scheme.bands * scheme.rows,
            seed=scheme.seed,
            scheme="affine32",
            hashfunc=lambda value: value,
        )
        sketch.update_batch(values.tolist())
        found.append(sketch.hashvalues)
    return found


@pytest.mark.parametrize("seed", [1, 42])
def test_signatures_equal_those_of_datasketch(seed: int) -> None:
    texts = [*sentences(20, seed), "a b c d e", "  one\ttwo\nthree   four five six "]
    scheme = Scheme(seed=seed)
    found, signed = sign(texts, scheme)
    assert signed.all()
    for one, other in zip(found, by_datasketch(texts, scheme), strict=True):
        assert np.array_equal(one, other)
