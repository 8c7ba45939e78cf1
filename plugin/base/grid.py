"""Grid of blocks in a document, from its first token on.

Places are tokens' places in their document: numbers, arrays or tensors.
"""

from __future__ import annotations

from typing import Any


def block_begin(place: Any, size: int) -> Any:
    """Return where the block of a place begins."""
    return place // size * size


def row_limit(place: Any, noisy: Any, size: int, *, causal: bool) -> Any:
    """Return the limits of a row's tokens, as batch.sees reads them; `noisy`: those of a copy.

    A noisy token sees the clean ones before its block, a clean one what clean_limit says.
    """
    clean = clean_limit(place, size, causal=causal)
    return clean + noisy * (block_begin(place, size) - clean)


def clean_limit(place: Any, size: int, *, causal: bool) -> Any:
    """Return the place before which a clean token at `place` sees all clean tokens.

    causal: it sees those before it and itself, else all of its block and of those before it.
    """
    return place + 1 if causal else (place // size + 1) * size
