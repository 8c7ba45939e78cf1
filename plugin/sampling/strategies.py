"""Decisions of one denoising step: a token for each masked position, and which of them to reveal.

Strategies as in LLaDA (low_confidence, random; Nie et al. 2025, arXiv 2502.09992) and Dream
(maskgit_plus, topk_margin, entropy, origin; Ye et al. 2025, arXiv 2508.15487). Rules as in Fast-dLLM
(threshold, factor; arXiv 2505.22618) and the entropy-bounded sampler (arXiv 2505.24857).
M masked positions of one row, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.sampler import SamplerSettings


class Draws:
    """Random draws of one row, a function of its seed alone: its neighbours change nothing."""

    def __init__(self, seed: tuple[int, ...], device: torch.device):
        state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        self._generator = torch.Generator(device).manual_seed(int(state) >> 1)

    def uniform(self, *shape: int) -> Tensor:
        """Return float64 draws in (0, 1)."""
        device = self._generator.device
        drawn = torch.rand(*shape, generator=self._generator, dtype=torch.float64, device=device)
        return drawn.clamp_(min=torch.finfo(torch.float64).tiny)

    def gumbel(self, *shape: int) -> Tensor:
        """Return float64 draws of the standard Gumbel distribution."""
        return self.uniform(*shape).log_().neg_().log_().neg_()


@dataclass(frozen=True)
class Guesses:
    """A token for each masked position and how sure it is."""

    tokens: NDArray[np.int64]  # [M]
    confidence: NDArray[np.float64]  # [M]


def guess(logits: Tensor, settings: SamplerSettings, draws: Draws | None) -> Guesses:
    """Choose a token for each position of logits [M, V]; -inf marks what is never chosen.

    Gumbel noise in float64: in lower precision it favours likely tokens (Zheng et al. 2024, arXiv
    2409.02908). `draws` may be None at temperature 0 with a strategy that draws nothing.
    """
    logits = logits.float()
    shaped = logits
    if settings.temperature:
        shaped = _filtered(logits.double() / settings.temperature, settings)
        assert draws
        tokens = (shaped + draws.gumbel(*shaped.shape)).argmax(-1)
    else:
        tokens = logits.argmax(-1)
    return Guesses(
        tokens.cpu().numpy(),
        _confidence(logits, shaped, tokens, settings.strategy, draws).double().cpu().numpy(),
    )


def _confidence(
    logits: Tensor, shaped: Tensor, tokens: Tensor, strategy: str, draws: Draws | None
) -> Tensor:
    """Return [M]: higher is surer. LLaDA judges by the model's own distribution, Dream by the
    tempered and filtered one.
    """
    if strategy in ("random", "origin"):
        assert draws
        return draws.uniform(tokens.shape[0])
    if strategy == "low_confidence":
        return _probability(logits, tokens)
    if strategy == "maskgit_plus":
        return _probability(shaped, tokens)
    if strategy == "topk_margin":
        first, second = shaped.softmax(-1).topk(2, dim=-1).values.unbind(-1)
        return first - second
    return -entropy(shaped)


def _probability(logits: Tensor, tokens: Tensor) -> Tensor:
    at = logits.gather(-1, tokens[:, None])[:, 0]
    return (at - logits.logsumexp(-1)).exp()


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy [M] in nats of logits [M, V]."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def _filtered(logits: Tensor, settings: SamplerSettings) -> Tensor:
    """Return logits [M, V], -inf outside the top_k tokens and the fewest that sum to top_p."""
    if settings.top_k and settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability  # 0 for the likeliest, which always stays
        out = torch.zeros_like(before, dtype=torch.bool).scatter(
            -1, order, before >= settings.top_p
        )
        logits = logits.masked_fill(out, -torch.inf)
    return logits


def reveal(
    guesses: Guesses, steps_left: int, settings: SamplerSettings, draws: Draws | None
) -> NDArray[np.int64]:
    """Return the places among M, ascending, that this step reveals.

    At least M / steps_left, rounded up, so that a block ends in its `steps`; more by a rule. Ties
    go to the left. `origin` reveals each with the probability 1 / steps_left.
    """
    confidence, M = guesses.confidence, guesses.confidence.size
    if settings.strategy == "origin":
        return np.flatnonzero(confidence < 1.0 / steps_left)
    if settings.alg_temp:
        assert draws
        confidence = confidence / settings.alg_temp + draws.gumbel(M).cpu().numpy()
    order = np.argsort(-confidence, kind="stable")
    quota = -(-M // max(1, min(steps_left, M)))
    count = max(quota, _sure(guesses.confidence[order], settings))
    return np.sort(order[:count])


def _sure(confidence: NDArray[np.float64], settings: SamplerSettings) -> int:
    """Return how many of the surest tokens (confidence descending) the rule reveals together."""
    if settings.threshold is not None:
        return int((confidence > settings.threshold).sum())
    if settings.factor is not None:
        number = np.arange(1, confidence.size + 1)
        fits = np.flatnonzero((number + 1) * (1 - confidence) < settings.factor)
        return int(fits[-1]) + 1 if fits.size else 0
    if settings.entropy_bound is not None:
        before = np.cumsum(-confidence) + confidence  # entropies of the tokens before each
        return int((before <= settings.entropy_bound).sum())
    return 0


def draws_anything(settings: SamplerSettings) -> bool:
    """Return True for settings whose answers depend on a seed."""
    return bool(settings.temperature or settings.alg_temp) or settings.strategy in (
        "random",
        "origin",
    )
