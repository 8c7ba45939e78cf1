"""Numerical precision of a run: dtype of its products and weights, and deterministic algorithms."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.deterministic

from ..base.errors import Code, JobError, Problem
from ..config.params import Params
from .choice import Choice

COMPUTE = {
    "no": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}  # by accelerate's mixed_precision


def choose_precision(params: Params, device: torch.device) -> Choice[str]:
    """Choose accelerate's mixed_precision.

    Raises JobError (exit 2) for a dtype the device cannot train in.
    """
    if params.dtype == "auto":
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            why = "bfloat16 compute with float32 master weights: this GPU does it well"
            return Choice("bf16", why)
        on_gpu = device.type == "cuda"
        lacks = "this GPU has no fast bfloat16" if on_gpu else "CPUs are slow in anything else"
        return Choice("no", f"float32: {lacks}")
    if params.dtype == "float32":
        return Choice("no", "float32, as chosen")
    if device.type == "cpu" and params.dtype == "float16":
        raise JobError(
            Problem(
                "dtype",
                "float32 on a CPU",
                "float16",
                "CPUs do not train in float16.",
                Code.CONFIGURATION,
            )
        )
    slow = "; a CPU does this many times slower than float32" if device.type == "cpu" else ""
    why = f"{params.dtype} compute with float32 master weights, as chosen{slow}"
    return Choice({"bfloat16": "bf16", "float16": "fp16"}[params.dtype], why)


def weight_dtype(params: Params, compute: torch.dtype) -> torch.dtype:
    """Return the dtype that weights are kept in; see make_model."""
    if params.model_config_file:
        return torch.float32  # a new model learns all it knows in small steps
    if params.lora or (params.optim == "adamw_8bit" and compute == torch.bfloat16):
        return compute
    return torch.float32


NO_FIXED_ORDER = re.compile(
    r"(\S.*?) (?:does not have a deterministic implementation|defaults to a non-deterministic algorithm)"
)


def make_deterministic(device: torch.device, log: Callable[[str], None]) -> str:
    """Make a GPU add in one order every time, so that a resumed run equals the unbroken one. CPUs
    do so anyway.

    Return what was set, in words. An operation that has no such order runs as it is; `log` names it
    once, when it first runs.
    """
    if device.type != "cuda":
        return ""
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # it would write every buffer once more
    torch.backends.cudnn.benchmark = False
    _name_operations_without_order(log)
    workspace = os.environ.get(
        "CUBLAS_WORKSPACE_CONFIG", "not set"
    )  # by the parent, before CUDA started
    return (
        f"deterministic algorithms, no cuDNN benchmark, CUBLAS_WORKSPACE_CONFIG {workspace}: the same devices give the same bits, "
        "but for operations that a line below names, if there are any"
    )


def _name_operations_without_order(log: Callable[[str], None]) -> None:
    """Turn torch's warnings about them into one log line each; show every other warning as before."""
    show, named = warnings.showwarning, set[str]()

    def shown(message: Warning | str, *where: Any, **how: Any) -> None:
        found = NO_FIXED_ORDER.search(str(message))
        if found is None:
            show(message, *where, **how)
        elif found[1] not in named:
            named.add(found[1])
            log(
                f"determinism: {found[1]} adds in no fixed order here: what follows from it agrees to rounding, not to the last bit"
            )

    warnings.showwarning = shown
    warnings.filterwarnings(
        "always", NO_FIXED_ORDER.pattern
    )  # torch says it at each place that calls the operation
