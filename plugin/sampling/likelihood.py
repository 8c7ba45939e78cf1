"""Log-likelihood of a continuation given a context: a diffusion model's bound, batched.

monte_carlo  LLaDA's bound with exact counts: l of the L tokens are masked, l uniform in 1..L, and
             L / l times the sum of their log-probabilities is an unbiased draw (Nie et al. 2025,
             arXiv 2502.09992, appendix B.5). It bounds the log-likelihood from below.
chain_rule   each token from the context and the tokens left of it, the others masked: exact for
             that order of generation.
confidence   the true token is revealed where the model is surest, one at a time (iLLaDA): the
             likelihood of the order that the sampler prefers.
next_token   the exact chain rule of a causal model, in a single forward.

The mask token is never an output, as in the sampler, so that a value is that of the distribution
which texts are drawn from. The training loss leaves it one: per token, a value here is higher than
the negative loss by -log(1 - p(mask)). The context is never masked, and a request has at least one
token of it, because no family predicts a document's first token.

T tokens of a request, L of its continuation, M masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.collate import CopiesOfRow
from ..data.packing import best_fit

ESTIMATORS = ("monte_carlo", "chain_rule", "confidence")
# Independent parts of the draws of a request. Draws of one part are evenly spaced, hence dependent:
# the parts alone have a variance that can be estimated.
REPLICATES = 8


@dataclass(frozen=True, kw_only=True)
class LikelihoodSettings:
    """The estimator and its guidance; `cfg` as in guidance.py."""

    estimator: str = "monte_carlo"
    draws: int = 128  # of monte_carlo; a single token needs one
    seed: int = 0
    cfg: float = 0.0
    cfg_prompt: str = "masked"
    block_length: int | None = None  # of a block model


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """A continuation to score."""

    context: NDArray[np.int32]  # at least one token
    continuation: NDArray[np.int32]  # [L], at least one token
    draw: tuple[int, ...] = ()  # with the seed, names the random draws
    greedy: bool = False  # also find out whether greedy decoding gives the continuation

    def __post_init__(self) -> None:
        assert self.context.size, "no family predicts a document's first token"
        assert self.continuation.size, "nothing to score"

    @property
    def tokens(self) -> int:
        """Return the tokens of context and continuation, T."""
        return self.context.size + self.continuation.size


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """An estimate, in nats."""

    value: float
    stderr: float | None  # over the draws; 0 for a value that draws nothing, None for a single draw
    tokens: int  # scored, L
    nfe: int  # forwards of this request: number of function evaluations, guidance counted
    # The likeliest token of the surest place was right at every step. None: not asked for.
    greedy: bool | None = None


@dataclass(frozen=True)
class Canvas:
    """One noised document of a request, as data/collate.py lays it out.

    That of a block model has more tokens than its document, and places of `masked` are those in it.
    """

    ids: NDArray[np.int32]  # [T] the true ones
    noisy: NDArray[np.int32]  # [T], or those of a row
    masked: NDArray[np.int64]  # [M] places whose tokens are scored
    start: int  # tokens of the context
    copies: CopiesOfRow | None = None  # of a block model
    unit: None = None  # of weights, which nothing reads

    @property
    def weight(self) -> NDArray[np.float32]:
        """Return weights that nothing reads."""
        return np.zeros(self.masked.size, np.float32)


class Scores(NamedTuple):
    """Scores of a canvas' masked tokens; see models/head.py."""

    log_p: NDArray[np.float64]  # [M]
    best: NDArray[np.float64]  # [M]
    correct: NDArray[np.bool_]  # [M]


Score = Callable[[Sequence[Canvas]], list[Scores]]
# A request at work: it yields canvases, is sent their scores, and returns its estimate.
Work = Generator[list[Canvas], list[Scores], Likelihood]
Begin = Callable[[ScoreRequest], Work]


def likelihoods(
    score: Score,
    requests: Iterable[ScoreRequest],
    settings: LikelihoodSettings,
    mask_id: int,
    *,
    tokens: int,
) -> Iterator[tuple[int, Likelihood]]:
    """Yield (number of the request, its log-likelihood) as requests are finished.

    Canvases of all requests share forwards of at most `tokens` tokens (more for a longer canvas);
    this changes no value but for rounding. Of a block model see block_likelihood.py.
    """
    work = partial(_work, settings=settings, mask_id=mask_id)
    return worked_off(score, requests, work, tokens)


def worked_off(
    score: Score, requests: Iterable[ScoreRequest], begin: Begin, tokens: int
) -> Iterator[tuple[int, Likelihood]]:
    """Yield (number of the request, its log-likelihood) as the work on requests is finished."""
    waiting = enumerate(requests)
    active: dict[int, tuple[Work, list[Canvas]]] = {}
    while True:
        pending = sum(one.noisy.size for _, canvases in active.values() for one in canvases)
        while pending < 2 * tokens and (entry := next(waiting, None)):
            number, request = entry
            work = begin(request)
            active[number] = work, next(work)
            pending += sum(one.noisy.size for one in active[number][1])
        if not active:
            return
        found = iter(_scored(score, [one for _, some in active.values() for one in some], tokens))
        for number, (work, canvases) in list(active.items()):
            try:
                active[number] = work, work.send([next(found) for _ in canvases])
            except StopIteration as finished:
                del active[number]
                yield number, finished.value


def _scored(score: Score, canvases: Sequence[Canvas], tokens: int) -> list[Scores]:
    """Score canvases in forwards of at most `tokens` tokens, each with those of similar length."""
    found: dict[int, Scores] = {}
    lengths = [one.noisy.size for one in canvases]
    for pack in best_fit(range(len(canvases)), lengths, max(tokens, *lengths)):
        found |= zip(pack, score([canvases[place] for place in pack]), strict=True)
    return [found[place] for place in range(len(canvases))]


def _work(request: ScoreRequest, settings: LikelihoodSettings, mask_id: int) -> Work:
    if settings.estimator == "next_token":
        return _causal(request)
    ways = {"monte_carlo": _monte_carlo, "chain_rule": _chain_rule, "confidence": _confidence}
    return ways[settings.estimator](request, settings, mask_id)


def _canvas(request: ScoreRequest, hidden: NDArray[np.int64], mask_id: int) -> Canvas:
    """Return a canvas that masks and scores `hidden` places of the continuation."""
    ids = np.concatenate([request.context, request.continuation])
    places = request.context.size + hidden
    noisy = ids.copy()
    noisy[places] = mask_id
    return Canvas(ids, noisy, places, request.context.size)


def mask_counts(draws: int, length: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Draw how many of `length` tokens to mask: evenly spaced draws by replicate, each shifted.

    A count is uniform in 1..length in each draw. Of n draws of a replicate, each count occurs n /
    length times, rounded down or up.
    """
    parts = min(REPLICATES, draws)
    sizes = [draws // parts + (part < draws % parts) for part in range(parts)]
    points = [(np.arange(size) + rng.random()) / size for size in sizes]
    return [np.minimum((each * length).astype(np.int64), length - 1) + 1 for each in points]


def _monte_carlo(request: ScoreRequest, settings: LikelihoodSettings, mask_id: int) -> Work:
    L = request.continuation.size
    rng = np.random.default_rng((settings.seed, *request.draw))
    counts = mask_counts(settings.draws if L > 1 else 1, L, rng)
    canvases = [
        _canvas(request, np.sort(rng.permutation(L)[:count]), mask_id)
        for part in counts
        for count in part
    ]
    found = iter((yield canvases))
    means = [np.mean([L / count * next(found).log_p.sum() for count in part]) for part in counts]
    greedy, more = (yield from _greedy(request, mask_id)) if request.greedy else (None, 0)
    spread = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else None
    return Likelihood(
        value=float(np.mean(means)),
        stderr=0.0 if L == 1 else spread,
        tokens=L,
        nfe=(len(canvases) + more) * _views(settings),
        greedy=greedy,
    )


def _chain_rule(request: ScoreRequest, settings: LikelihoodSettings, mask_id: int) -> Work:
    L = request.continuation.size
    canvases: list[Canvas] = []
    for place in range(L):
        full = _canvas(request, np.arange(place, L), mask_id)
        canvases.append(Canvas(full.ids, full.noisy, full.masked[:1], full.start))
    found = yield canvases
    greedy, more = (yield from _greedy(request, mask_id)) if request.greedy else (None, 0)
    return Likelihood(
        value=float(sum(one.log_p[0] for one in found)),
        stderr=0.0,
        tokens=L,
        nfe=(L + more) * _views(settings),
        greedy=greedy,
    )


def _confidence(request: ScoreRequest, settings: LikelihoodSettings, mask_id: int) -> Work:
    L = request.continuation.size
    log_p, greedy, _ = yield from _revealed(request, mask_id)
    return Likelihood(value=log_p, stderr=0.0, tokens=L, nfe=L * _views(settings), greedy=greedy)


def _greedy(
    request: ScoreRequest, mask_id: int
) -> Generator[list[Canvas], list[Scores], tuple[bool, int]]:
    """Return whether greedy decoding gives the continuation, and the forwards that this took."""
    _, greedy, nfe = yield from _revealed(request, mask_id, until_wrong=True)
    return greedy, nfe


def _revealed(
    request: ScoreRequest, mask_id: int, *, until_wrong: bool = False
) -> Generator[list[Canvas], list[Scores], tuple[float, bool, int]]:
    """Reveal the true tokens, the surest place first; of equal places the left one.

    Returns their log-probability, whether each was the likeliest token, and the steps.
    """
    hidden, log_p, greedy, steps = np.arange(request.continuation.size), 0.0, True, 0
    while hidden.size and (greedy or not until_wrong):
        (found,) = yield [_canvas(request, hidden, mask_id)]
        surest = int(found.best.argmax())
        log_p += float(found.log_p[surest])
        greedy = greedy and bool(found.correct[surest])
        hidden, steps = np.delete(hidden, surest), steps + 1
    return log_p, greedy, steps


def _causal(request: ScoreRequest) -> Work:
    ids = np.concatenate([request.context, request.continuation])
    start = request.context.size
    (found,) = yield [Canvas(ids, ids, np.arange(start, ids.size), start)]
    return Likelihood(
        value=float(found.log_p.sum()),
        stderr=0.0,
        tokens=request.continuation.size,
        nfe=1,
        greedy=bool(found.correct.all()),
    )


def _views(settings: LikelihoodSettings) -> int:
    return 2 if settings.cfg else 1
