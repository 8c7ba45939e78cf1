"""Noise, answers, masks, weights and losses of every method: pure functions of numpy arrays.

Randomness is an argument. Step building runs them on the CPU, ahead of the step, so that training
never waits for the device. They return sums and counts; the loop alone divides.

A method's objective is in the file of its name and in OBJECTIVES; see config/methods.py.
"""

from __future__ import annotations

from . import bert, block, causal, dream, llada
from .masked import Objective

OBJECTIVES: dict[str, Objective] = {
    objective.method: objective
    for objective in (
        bert.OBJECTIVE,
        block.OBJECTIVE,
        causal.OBJECTIVE,
        dream.OBJECTIVE,
        llada.OBJECTIVE,
    )
}
