"""Advice on too little memory: what takes most of it, and settings that need less and train the
same.
"""

from __future__ import annotations

from dataclasses import asdict

from ..base.errors import Code, JobError, Problem
from ..config.params import Params
from .memory import MemoryPlan, gb
from .training_data import training_data


def cheaper_settings(params: Params, plan: MemoryPlan | None) -> list[str]:
    """Return settings that need less memory and keep the effective batch, the most effective first."""
    rows = training_data(params).smaller_batches()
    if (str(plan.recompute) if plan else params.recompute) != "full":
        rows.append("recompute full")
    if params.attn_implementation == "eager":
        rows.insert(0, "attn_implementation sdpa")
    states: list[str] = []
    if params.optim == "adamw" and not params.lora:
        states.append("optim adamw_8bit")
    if not params.lora and params.model_name:  # a new model has no base to adapt
        states.append("lora true")
    if params.lora and not params.load_in_4bit:
        states.append("load_in_4bit true")
    if params.dtype == "float32":
        states.append("dtype bfloat16")
    memory = plan.memory if plan else None
    grows = (
        memory is None
        or memory.activations + memory.logits > memory.weights + memory.gradients + memory.optimizer
    )
    return (rows + states if grows else states + rows)[:3]


def out_of_memory(params: Params, plan: MemoryPlan | None, told: str) -> Problem:
    """Return the error of a run that runs out of memory: what takes most, and which settings need
    less.
    """
    got = told
    if plan:
        memory = plan.memory
        got += f"; most goes to {memory.biggest} ({gb(asdict(memory)[memory.biggest])} of about {gb(memory.peak)})"
    settings = cheaper_settings(params, plan)
    words = "; or ".join(settings) or "a smaller model or max_length"
    return Problem(
        "memory",
        "room for the run",
        got,
        f"Same effective batch with less memory: {words}.",
        Code.OUT_OF_MEMORY,
    )


def check_memory(params: Params, plan: MemoryPlan, room: int) -> None:
    """Raise JobError (exit 5) when a run needs far more memory than there is.

    A narrow case may still succeed: an estimate is not exact.
    """
    if plan.memory.peak > 1.25 * room:
        raise JobError(
            out_of_memory(
                params, plan, f"{gb(room)} free where about {gb(plan.memory.peak)} are needed"
            )
        )
