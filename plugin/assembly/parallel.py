"""Choice of how devices share a model."""

from __future__ import annotations

from collections.abc import Callable

from ..config.params import Params


def choose_parallel(
    params: Params, *, ranks: int, on_gpu: bool, fits: Callable[[], bool]
) -> tuple[str, str]:
    """(ddp, zero2 or zero3; why).

    `fits`: whether a whole copy of the run fits on every device; asked only where it decides.
    """
    if ranks == 1:
        return "ddp", "one process, nothing to share"
    if params.parallel != "auto":
        return "zero3" if params.parallel == "fsdp2" else params.parallel, "as chosen"
    if not on_gpu:
        return "ddp", "ranks on CPUs share one memory as it is"
    if params.optim != "adamw" or params.dtype == "float16":
        return "ddp", "8-bit optimizers and float16 are not cut up"
    if fits():
        return "ddp", "a whole copy fits on each device"
    return "zero3", "a whole copy does not fit on each device"
