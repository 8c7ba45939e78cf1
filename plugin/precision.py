"""How exactly a device computes: flags that make a run repeat itself to the last bit."""

from __future__ import annotations

import os
import warnings

import torch
import torch.utils.deterministic


def make_deterministic(device: torch.device) -> str:
    """Make a GPU add in one order every time, so that a resumed run is the unbroken one; what was set, in words. CPUs do already.

    Operations without such a way run as they are: they are none of ours, but a library's may be.
    """
    if device.type != "cuda":
        return ""
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # it would write every buffer once more
    torch.backends.cudnn.benchmark = False
    warnings.filterwarnings("ignore", ".* does not have a deterministic implementation")
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG", "not set")  # by the parent, before CUDA started
    return (
        f"deterministic algorithms, no cuDNN benchmark, CUBLAS_WORKSPACE_CONFIG {workspace}: the same devices give the same bits"
    )
