"""MinHash signatures, in bulk and in windows."""

from __future__ import annotations

import random

import numpy as np
import pytest
from helpers.corpora import changed, sentences

from plugin.corpus import signatures
from plugin.corpus.signatures import Scheme, band_keys, shingle_hashes, sign

SCHEME = Scheme(bands=8, rows=4)


def test_text_of_fewer_words_than_a_shingle_is_not_signed() -> None:
    _, signed = sign(["", "   ", "one two three four", "one two three four five"], SCHEME)
    assert signed.tolist() == [False, False, False, True]


def test_shingles_do_not_cross_texts() -> None:
    texts = sentences(7, words=9)
    hashes, counts = shingle_hashes(texts, SCHEME)
    alone = [shingle_hashes([text], SCHEME)[0] for text in texts]
    assert counts.tolist() == [5] * 7
    assert np.array_equal(hashes, np.concatenate(alone))


def test_order_of_words_counts() -> None:
    hashes, _ = shingle_hashes(["a b c d e", "e d c b a", "a b c d e"], SCHEME)
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize("unit", ["word", "character"])
@pytest.mark.parametrize("ngram", [1, 3, 5])
def test_windows_of_a_long_text_give_its_signature(
    unit: str, ngram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(ngram)
    text = "".join(draw.choice(["word ", "x", " ", "\n", "long" * 9]) for _ in range(3000))
    scheme = Scheme(ngram=ngram, unit=unit, bands=4, rows=4)
    whole, _ = sign([text, "y y y y y"], scheme)
    for window in (10, 97, 1000):
        monkeypatch.setattr(signatures, "WINDOW", window)
        monkeypatch.setattr(signatures, "CHUNK", 3 * window)
        assert np.array_equal(sign([text, "y y y y y"], scheme)[0], whole)


def test_characters_suit_texts_without_spaces() -> None:
    text = "".join(chr(0x4E00 + place * 37 % 5000) for place in range(400))
    near = text[:200] + "変" + text[201:]
    found, signed = sign([text, near], Scheme(unit="character"))
    assert signed.all()
    assert np.mean(found[0] == found[1]) > 0.9
    assert not sign([text], Scheme())[1].any()


def test_share_of_equal_values_is_the_jaccard_similarity() -> None:
    scheme = Scheme(ngram=1, bands=50, rows=40)
    text = " ".join(f"w{n}" for n in range(200))
    for words in (0, 20, 60, 150):
        other = changed(text, words, seed=words)
        exact = (200 - words) / (200 + words)
        (one, two), _ = sign([text, other], scheme)
        error = 3 * (exact * (1 - exact) / 2000) ** 0.5
        assert np.mean(one == two) == pytest.approx(exact, abs=error + 1e-9)


def test_band_keys_are_equal_where_all_rows_are() -> None:
    values = np.random.default_rng(0).integers(0, 2**32, (3, 32), dtype=np.uint32)
    values[1] = values[0]
    values[1, 5] += 1  # a row of band 1
    keys = band_keys(values, SCHEME)
    assert keys.shape == (8, 3)
    assert (keys[:, 0] == keys[:, 1]).tolist() == [True, False, *[True] * 6]
    assert not (keys[:, 0] == keys[:, 2]).any()
