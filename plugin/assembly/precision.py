"""Numerical precision of a run: dtype of its products and weights, and deterministic algorithms."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from ..base.errors import Code, JobError, Problem
from ..config.model_files import read_json
from ..config.params import Params
from ..models.linear.float8 import check_torchao
from .choice import Choice

COMPUTE = {
    "no": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}  # by accelerate's mixed_precision

# Ada's tensor cores (8.9) were the first of NVIDIA with float8 products, with Hopper's (9.0).
FLOAT8_CAPABILITY = (8, 9)


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


def choose_float8(params: Params, device: torch.device, compute: torch.dtype) -> Choice[bool]:
    """Choose whether linear layers train with float8 products.

    Raises JobError (exit 2) where they were asked for and cannot run.
    """
    if not params.float8:
        return Choice(False, "not asked for")
    if device.type != "cuda" or torch.version.hip:
        got = "a CPU" if device.type == "cpu" else "an AMD GPU"
        raise _no_float8("an NVIDIA GPU", got)
    capability = torch.cuda.get_device_capability(device)
    if capability < FLOAT8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        got = f"{name}, {capability[0]}.{capability[1]}"
        raise _no_float8("a GPU of compute capability 8.9 or newer", got)
    if compute != torch.bfloat16:
        raise _no_float8("bfloat16 for all other products", str(compute).removeprefix("torch."))
    check_torchao()
    return Choice(True, "products of linear layers below the head, with a scale for each tensor")


def _no_float8(expected: str, got: str) -> JobError:
    return JobError(Problem("float8", expected, got, "Set float8 false."))


def weight_dtype(params: Params, compute: torch.dtype) -> torch.dtype:
    """Return the dtype that weights are kept in; see make_model."""
    if params.model_config_file:
        return torch.float32  # a new model learns all it knows in small steps
    if params.start_from:  # as it was trained so far, for which the optimizer's states stand
        saved = read_json(Path(params.start_from) / "config.json").get("dtype")
        return torch.bfloat16 if saved == "bfloat16" else torch.float32
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
