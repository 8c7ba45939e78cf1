"""Objective of masked encoders: masked diffusion weighted by time (MDLM, arXiv 2406.07524)."""

from __future__ import annotations

from .masked import Objective, weight_by_time

OBJECTIVE = Objective(method="bert", weight=weight_by_time)
