"""Dream's objective: token weights by visible context (CART), by time, or uniform.

T tokens of one document. Source: DreamLM's own trainer (fsdp_sft_trainer.py, as in Dream-Coder) and
the Dream 7B report, section on CART (context-adaptive noise rescheduling at token level). Its
cutoffs of answers are in answers.py, its one-token shift is its models' (config/families.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .masked import Objective, WeightFunction, by_time, evenly


@dataclass(frozen=True)
class Cart:
    """Weight a masked token by the visible context near it.

    The context's influence decays geometrically with parameter p in (0, 1].
    """

    p: float


@dataclass(frozen=True)
class Scheduler:
    """Weight by the noise schedule, 1/t for the linear one."""


@dataclass(frozen=True)
class Uniform:
    """Weight every masked token 1."""


LossWeight = Cart | Scheduler | Uniform


class Weighed(Protocol):
    """The parameters that Dream's weights depend on."""

    @property
    def noise_schedule(self) -> str: ...
    @property
    def loss_weight_type(self) -> str: ...


def weight_by_type(params: Weighed) -> WeightFunction:
    """Return the weight function that a job's `loss_weight_type` names."""
    return by_context(parse_loss_weight_type(params.loss_weight_type), params.noise_schedule)


def by_context(kind: LossWeight, schedule: str) -> WeightFunction:
    """Weigh masked tokens by visible neighbours, by time, or 1."""
    if isinstance(kind, Cart):
        return lambda hidden, _levels, _factors: cart_weights(hidden, kind.p)
    if isinstance(kind, Scheduler):
        return by_time(schedule)
    return evenly


OBJECTIVE = Objective(method="dream", weight=weight_by_type)

_CART = re.compile(r"cart\[geo_p:([0-9]+\.?[0-9]*|\.[0-9]+)\]", re.ASCII)


def parse_loss_weight_type(text: str) -> LossWeight:
    """Read `cart[geo_p:P]`, P a plain decimal in (0, 1] (`.5`, `1.0`), `scheduler` or `uniform`.

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
        "loss_weight_type: expected cart[geo_p:P] with 0 < P <= 1, scheduler or uniform, "
        f"got {text!r}. Example: cart[geo_p:0.3]."
    )


def cart_weights(masked: NDArray[np.bool_], geo_p: float) -> NDArray[np.float64]:
    """Return the CART weight of each token of one document, float64 [T]; 0 where nothing is masked.

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
    """Return s [T] with s_0 = 0, s_n = (1-p) s_{n-1} + visible_{n-1}.

    A plain loop: about 1 ms at T = 8192.
    """
    keep = 1.0 - geo_p
    sums = list(accumulate(visible, lambda total, x: keep * total + x, initial=0.0))
    return np.array(sums[:-1], dtype=np.float64)
