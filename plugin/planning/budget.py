"""Arithmetic of a budget: from FLOPs or tokens, and a size, to steps.

Training costs 6 FLOPs a parameter and token. N is the exact number of parameters without embeddings
and head, B the rows of a step on one machine. Source: SMDM (ML-GSAI/SMDM, pretrain/train_mdm_rl.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ROWS = 256  # of a published step, over all machines

# Tokens per parameter of the best size for a budget. Chinchilla (arXiv 2203.15556): about 20 for
# causal models. Quokka (arXiv 2510.03280): masked-diffusion models want 2 to 5 times the tokens for
# the same FLOPs, that is 4 to 25 times the ratio, which both papers find constant. MIDDLE is the
# geometric mean.
CAUSAL_RATIO = 20.0
LOW_RATIO, HIGH_RATIO = 4 * CAUSAL_RATIO, 25 * CAUSAL_RATIO
MIDDLE_RATIO = math.sqrt(LOW_RATIO * HIGH_RATIO)


def mean_length(length: int, stochastic: float) -> float:
    """Return the mean tokens of a row of `length` tokens.

    A share `stochastic` of the rows is cut at a length drawn uniformly from 1 to `length`.
    """
    return length * (1 - stochastic) + (length + 1) / 2 * stochastic


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A run of `steps` steps of a model with `parameters` parameters."""

    parameters: int
    steps: int
    rows: int  # of a step on each machine
    machines: int
    mean_tokens: float  # of a row

    @property
    def tokens(self) -> float:
        """Return the tokens of the run, over all machines."""
        return self.steps * self.rows * self.machines * self.mean_tokens

    @property
    def flops(self) -> float:
        return 6 * self.parameters * self.tokens


def steps_for_flops(
    flops: float, parameters: int, *, rows: int, machines: int, mean_tokens: float
) -> Budget:
    """Return the run that a budget of FLOPs pays for: int(FLOPs / (6 N B mean) / machines) steps.

    `rows`: of a step over all machines, of which each takes B = int(rows / machines).
    """
    each = int(rows / machines)
    steps = int(flops / (6 * parameters * each * mean_tokens) / machines)
    return Budget(
        parameters=parameters, steps=steps, rows=each, machines=machines, mean_tokens=mean_tokens
    )


def steps_for_tokens(
    tokens: float, parameters: int, *, rows: int, machines: int, mean_tokens: float
) -> Budget:
    """Return the run that reads `tokens` tokens, rounded down to full steps."""
    each = int(rows / machines)
    steps = int(tokens / (each * mean_tokens * machines))
    return Budget(
        parameters=parameters, steps=steps, rows=each, machines=machines, mean_tokens=mean_tokens
    )


@dataclass(frozen=True)
class Law:
    """Parameters of the best model for C FLOPs: `scale` x C ** `exponent`."""

    scale: float
    exponent: float
    source: str

    @classmethod
    def of_ratio(cls, ratio: float, source: str) -> Law:
        """Return the law of a constant number of tokens per parameter: C = 6 N (ratio N)."""
        return cls(math.sqrt(1 / (6 * ratio)), 0.5, source)

    def for_flops(self, flops: float) -> float:
        """Return the best number of parameters for a budget of FLOPs."""
        return self.scale * flops**self.exponent

    def for_tokens(self, tokens: float) -> float:
        """Return the number of parameters for which `tokens` are the best number of tokens.

        Solves N = scale (6 N tokens) ** exponent.
        """
        grown = self.scale * (6 * tokens) ** self.exponent
        return grown ** (1 / (1 - self.exponent))
