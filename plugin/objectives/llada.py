"""LLaDA's objective: masked diffusion weighted by time (arXiv 2502.09992)."""

from __future__ import annotations

from .masked import Objective, weight_by_time

OBJECTIVE = Objective(method="llada", weight=weight_by_time)
