"""Log-likelihood of a continuation by a model that is denoised block by block.

It is the sum over the blocks of the continuation, each given the true tokens before it. Blocks lie on
the grid of the document, so that the first one may hold the end of the context, which stays visible.

monte_carlo  the bound of each block with exact counts of its own: k of the L' tokens are masked, k
             uniform in 1..L', with the weight L' / k (Arriola et al. 2025, arXiv 2503.09573, by the
             counts of arXiv 2502.09992). It is tighter than that of full attention, and exact for
             blocks of one token.
chain_rule   each token from the tokens left of it, the rest of its block masked: exact for that order.
confidence   in each block the true token is revealed where the model is surest, one at a time.

Noisy copies of blocks share a row with one clean copy of the document, as in training: a draw costs
the tokens of the continuation, not those of the context. See likelihood.py for the rest.

T tokens of a request, P of its context, L' of a block to score, R tokens of a row, M masked.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..base.grid import block_begin, row_limit
from ..run.facts import BlockFacts
from .likelihood import (
    Canvas,
    Likelihood,
    LikelihoodSettings,
    Score,
    ScoreRequest,
    Scores,
    Work,
    mask_counts,
    worked_off,
)

# Tokens of a row for each of its document: a longer row shares the clean copy among more noisy
# ones, and a CPU's mask of all its pairs grows with the square.
ROW = 4


@dataclass(frozen=True)
class CopiedBlocks:
    """The noisy copies of a row, as data/collate.py lays them out."""

    position: NDArray[np.int64]  # [R]
    copy: NDArray[np.int64]  # [R]
    limit: NDArray[np.int64]  # [R]
    source: NDArray[np.int64]  # [M]


@dataclass(frozen=True)
class _Noisy:
    """A noisy copy of a block, by places of the document."""

    begin: int
    masked: NDArray[np.int64]
    scored: NDArray[np.int64]  # those of the masked whose tokens are predicted


Asking = Generator[list[Canvas], list[Scores], list[Scores]]


def block_likelihoods(
    score: Score,
    requests: Iterable[ScoreRequest],
    settings: LikelihoodSettings,
    block: BlockFacts,
    mask_id: int,
    *,
    tokens: int,
) -> Iterator[tuple[int, Likelihood]]:
    """Yield (number of the request, its log-likelihood) as requests are finished.

    See likelihood.likelihoods. Guidance has no meaning here.
    """
    assert not settings.cfg, "no block model is trained without its prompt"
    ways = {"monte_carlo": _monte_carlo, "chain_rule": _chain_rule, "confidence": _confidence}
    way, rows = ways[settings.estimator], _Rows(block, mask_id, tokens)
    return worked_off(score, requests, partial(way, rows, settings=settings), tokens)


def scored_blocks(context: int, tokens: int, size: int) -> list[NDArray[np.int64]]:
    """Return the places [L'] to score of each block, for a context of that many of the `tokens`."""
    begins = range(block_begin(context, size), tokens, size)
    return [np.arange(max(begin, context), min(begin + size, tokens)) for begin in begins]


@dataclass(frozen=True)
class _Rows:
    """Layout of noisy copies in rows of at most `tokens` tokens (more for a longer document)."""

    block: BlockFacts
    mask_id: int
    tokens: int

    def blocks(self, request: ScoreRequest) -> list[NDArray[np.int64]]:
        return scored_blocks(request.context.size, request.tokens, self.block.size)

    def noisy(self, masked: NDArray[np.int64], scored: NDArray[np.int64] | None = None) -> _Noisy:
        begin = block_begin(int(masked[0]), self.block.size)
        return _Noisy(begin, masked, masked if scored is None else scored)

    def ask(self, request: ScoreRequest, copies: Sequence[_Noisy]) -> Asking:
        """Return the scores of each copy; they are in the order of the document."""
        found = yield self._canvases(request, copies)
        ends = np.cumsum([one.scored.size for one in copies])[:-1]
        parts = (np.split(np.concatenate(each), ends) for each in zip(*found, strict=True))
        return [Scores(*each) for each in zip(*parts, strict=True)]

    def _canvases(self, request: ScoreRequest, copies: Sequence[_Noisy]) -> list[Canvas]:
        ids = np.concatenate([request.context, request.continuation])
        room = min(self.tokens, ROW * (ids.size + self.block.size))
        rows: list[list[_Noisy]] = []
        filled = 0  # by the noisy copies of the last row
        for one in copies:
            width = min(self.block.size, ids.size - one.begin)
            if not rows or one.begin + filled + width > room:
                rows.append([])
                filled = 0
            rows[-1].append(one)
            filled += width
        return [self._canvas(ids, request.context.size, row) for row in rows]

    def _canvas(self, ids: NDArray[np.int32], start: int, copies: Sequence[_Noisy]) -> Canvas:
        """Return the row of these copies behind the clean tokens that the last of them sees."""
        size, clean = self.block.size, np.arange(copies[-1].begin)
        spans = [np.arange(one.begin, min(one.begin + size, ids.size)) for one in copies]
        offsets = np.cumsum([clean.size, *(span.size for span in spans)])
        position = np.concatenate([clean, *spans])
        copy = np.repeat(np.arange(len(copies) + 1), [clean.size, *(span.size for span in spans)])
        causal = self.block.clean_context == "causal"
        limit = row_limit(position, copy > 0, size, causal=causal)
        noisy = ids[position]
        masked, source = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        for one, offset in zip(copies, offsets[:-1], strict=True):
            noisy[offset + one.masked - one.begin] = self.mask_id
            masked.append(offset + one.scored - one.begin)
            source.append(masked[-1] - int(self.block.shift))
            if self.block.shift:  # the state before a block is that of a clean token
                source[-1][one.scored == one.begin] = one.begin - 1
        row = CopiedBlocks(position, copy, limit, np.concatenate(source))
        return Canvas(ids, noisy, np.concatenate(masked), start, row)


def _monte_carlo(rows: _Rows, request: ScoreRequest, settings: LikelihoodSettings) -> Work:
    rng = np.random.default_rng((settings.seed, *request.draw))
    blocks = rows.blocks(request)
    counts = [
        mask_counts(settings.draws if places.size > 1 else 1, places.size, rng) for places in blocks
    ]
    copies = [
        rows.noisy(np.sort(rng.permutation(places)[:count]))
        for places, of_block in zip(blocks, counts, strict=True)
        for part in of_block
        for count in part
    ]
    found = iter((yield from rows.ask(request, copies)))
    totals = np.zeros(1)  # by replicate; a block of one token has a single, exact value
    for places, of_block in zip(blocks, counts, strict=True):
        totals = totals + [
            np.mean([places.size / count * next(found).log_p.sum() for count in part])
            for part in of_block
        ]
    exact = all(places.size == 1 for places in blocks)
    greedy, more = (yield from _greedy(rows, request)) if request.greedy else (None, 0)
    spread = float(totals.std(ddof=1)) / math.sqrt(totals.size) if totals.size > 1 else None
    return Likelihood(
        value=float(totals.mean()),
        stderr=0.0 if exact else spread,
        tokens=request.continuation.size,
        nfe=(1 if exact else settings.draws) + more,
        greedy=greedy,
    )


def _chain_rule(rows: _Rows, request: ScoreRequest, settings: LikelihoodSettings) -> Work:
    copies = [
        rows.noisy(places[number:], places[number : number + 1])
        for places in rows.blocks(request)
        for number in range(places.size)
    ]
    found = yield from rows.ask(request, copies)
    greedy, more = (yield from _greedy(rows, request)) if request.greedy else (None, 0)
    return Likelihood(
        value=float(sum(one.log_p[0] for one in found)),
        stderr=0.0,
        tokens=len(copies),
        nfe=len(copies) + more,
        greedy=greedy,
    )


def _confidence(rows: _Rows, request: ScoreRequest, settings: LikelihoodSettings) -> Work:
    log_p, greedy, nfe = yield from _revealed(rows, request)
    tokens = request.continuation.size
    return Likelihood(value=log_p, stderr=0.0, tokens=tokens, nfe=nfe, greedy=greedy)


def _greedy(
    rows: _Rows, request: ScoreRequest
) -> Generator[list[Canvas], list[Scores], tuple[bool, int]]:
    """Return whether greedy decoding gives the continuation, and the forwards that this took."""
    _, greedy, nfe = yield from _revealed(rows, request, until_wrong=True)
    return greedy, nfe


def _revealed(
    rows: _Rows, request: ScoreRequest, *, until_wrong: bool = False
) -> Generator[list[Canvas], list[Scores], tuple[float, bool, int]]:
    """Reveal the true tokens of all blocks at once, in each the surest place first.

    Blocks are given the true ones before them, so that none waits for another. Returns the
    log-probability of the tokens, whether each was the likeliest one, and the forwards.
    """
    left, log_p, greedy, steps = rows.blocks(request), 0.0, True, 0
    while left and (greedy or not until_wrong):
        found = yield from rows.ask(request, [rows.noisy(masked) for masked in left])
        for number, one in enumerate(found):
            surest = int(one.best.argmax())
            log_p += float(one.log_p[surest])
            greedy = greedy and bool(one.correct[surest])
            left[number] = np.delete(left[number], surest)
        left, steps = [masked for masked in left if masked.size], steps + 1
    return log_p, greedy, steps
