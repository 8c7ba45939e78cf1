"""Dream's objective: CART weights, the spelling of `loss_weight_type`, and the two response
cutoffs.

Everything here is numpy on the CPU: noise, cutoffs and weights of a step are drawn before the batch
goes to the device.

Shapes: S documents of a step, T tokens of one document. Source: DreamLM's own trainer
(fsdp_sft_trainer.py, as in Dream-Coder) and the Dream 7B report, section on CART (context-adaptive
noise rescheduling at token level).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from .mdlm import Weigh, by_time


@dataclass(frozen=True)
class Cart:
    """Weight a masked token by how much visible context is near it, with a geometric decay of
    parameter p in (0, 1].
    """

    p: float


@dataclass(frozen=True)
class Scheduler:
    """Weight by the noise schedule, 1/t for the linear one."""


@dataclass(frozen=True)
class Uniform:
    """Weight every masked token 1."""


LossWeight = Cart | Scheduler | Uniform


def by_context(kind: LossWeight, schedule: str) -> Weigh:
    """Dream's weight of masked tokens: by visible neighbours, by time, or 1."""
    if isinstance(kind, Cart):
        return lambda hidden, _t, _factor: cart_weights(hidden, kind.p)
    if isinstance(kind, Scheduler):
        return by_time(schedule)
    return lambda _hidden, _t, _factor: 1.0


_CART = re.compile(r"cart\[geo_p:([0-9]+\.?[0-9]*|\.[0-9]+)\]", re.ASCII)


def parse_loss_weight_type(text: str) -> LossWeight:
    """`cart[geo_p:P]` with P a plain decimal in (0, 1] (`.5` and `1.0` too), `scheduler` or
    `uniform`.

    Raises: ValueError for anything else. dLLM's pattern wants a digit on both sides of the point,
    and silently falls back to 0.3 for what it does not match.
    """
    if text == "scheduler":
        return Scheduler()
    if text == "uniform":
        return Uniform()
    match = _CART.fullmatch(text)
    if match and 0 < float(match[1]) <= 1:
        return Cart(float(match[1]))
    raise ValueError(
        f"loss_weight_type: expected cart[geo_p:P] with 0 < P <= 1, scheduler or uniform, got {text!r}. Example: cart[geo_p:0.3]."
    )


def cart_weights(masked: NDArray[np.bool_], geo_p: float) -> NDArray[np.float64]:
    """CART weight of each token of one document, float64 [T]; 0 where nothing is masked.

    w_n = masked_n * sum over unmasked i of p/2 (1-p)^(|n-i|-1). With L_n the sum over i < n without
    the factor p/2, L_n = (1-p) L_{n-1} + unmasked_{n-1}; the right side is the same backwards. O(T)
    in time and memory, where Dream's trainer and dLLM build a (T, T) matrix: 512 MB at T = 8192.
    Every term is >= 0 and decays, so any p in (0, 1] is stable; at p = 1, where Dream's own formula
    takes log 0, only direct neighbours count.

    Pass one document at a time: packed documents do not see one another. Visible EOS counts as
    context, and so does the prompt; padding does not exist here (Dream's trainer counts its
    invisible left padding as context).
    """
    visible = (~np.asarray(masked, dtype=np.bool_)).astype(np.float64)
    both = _decayed(visible.tolist(), geo_p) + _decayed(visible[::-1].tolist(), geo_p)[::-1]
    return np.where(visible == 0, geo_p / 2 * both, 0.0)


def _decayed(visible: Iterable[float], geo_p: float) -> NDArray[np.float64]:
    """s_0 = 0, s_n = (1-p) s_{n-1} + visible_{n-1}, for every n of [T].

    A plain loop: about 1 ms at T = 8192.
    """
    keep = 1.0 - geo_p
    sums = list(accumulate(visible, lambda total, x: keep * total + x, initial=0.0))
    return np.array(sums[:-1], dtype=np.float64)


def cutoff_lengths(
    response_lengths: NDArray[np.integer],
    *,
    perbatch: bool,
    resp_ratio: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """How many response tokens each of a step's documents keeps, int64 [S]; at least 1 of any that
    has one.

    perbatch: one document of the step is drawn, and longer responses are cut to the length of its
    response. resp_ratio: with this probability, one number drawn from U{1..shortest-1} is then cut
    from the end of *every* response, `shortest` being the shortest after the first cut; nothing
    where that is 1.

    Dream's own trainer applies both in this order too (dLLM one or the other), and differs in three
    ways. It draws per rank and micro-batch, not per step. After its per-batch cut it first fills
    short responses with visible, supervised EOS, so that its `shortest` is the drawn length and a
    short response loses only filling. And so a response of one token stops its second cut only if
    it is the drawn one. Here filling is the EOS policy's business, after the cuts.
    """
    kept = np.array(response_lengths, dtype=np.int64)
    answered = (
        kept > 0
    )  # a document without a response can neither be cut nor cut others to nothing
    if not answered.any():
        return kept
    if perbatch:
        kept = np.minimum(kept, rng.choice(kept[answered]))
    if resp_ratio > 0 and rng.random() < resp_ratio:
        shortest = int(kept[answered].min())
        if shortest > 1:
            kept[answered] -= rng.integers(1, shortest)  # the upper end is exclusive
    return kept
