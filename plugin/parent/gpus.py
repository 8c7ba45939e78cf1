"""GPUs of this machine and of a job, found without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..base.errors import JobError, Problem
from ..config.params import Params


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine, numbered as the driver does: in the order of the PCI bus."""

    index: int
    uuid: str  # GPU-...
    slices: tuple[str, ...] = ()  # UUIDs of its MIG slices: MIG-...


def list_gpus() -> list[Gpu]:
    """Ask NVIDIA's management library for its GPUs; empty on a machine without a driver."""
    import pynvml  # 50 ms, which only a job pays that may use a GPU

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    found: list[Gpu] = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):  # a GPU that has fallen off the bus
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                found.append(Gpu(index, pynvml.nvmlDeviceGetUUID(handle), _slices(pynvml, handle)))
    finally:
        pynvml.nvmlShutdown()
    return found


def _slices(nvml: Any, handle: Any) -> tuple[str, ...]:
    try:
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:  # a GPU or a driver without MIG
        return ()
    found: list[str] = []
    for number in range(most):
        with suppress(nvml.NVMLError):  # no slice has this number
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            found.append(nvml.nvmlDeviceGetUUID(part))
    return tuple(found)


def visible_gpus(environ: Mapping[str, str], listed: Callable[[], Sequence[Gpu]]) -> list[str]:
    """Return the names of the GPUs that CUDA would show, in its order.

    A GPU with MIG slices is reached through them alone; each slice is a device of its own.
    CUDA_VISIBLE_DEVICES may hold indices or the beginnings of UUIDs. As in CUDA, the first unknown
    one ends the list.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and not chosen.strip():
        return []
    gpus = listed()
    devices = [name for gpu in gpus for name in (gpu.slices or (str(gpu.index),))]
    if chosen is None:
        return devices
    uuids = [uuid for gpu in gpus for uuid in (gpu.uuid, *gpu.slices)]
    names: list[str] = []
    for name in (part.strip() for part in chosen.split(",")):
        named = name.startswith(("GPU-", "MIG-")) and any(uuid.startswith(name) for uuid in uuids)
        if not (name in devices if name.isdigit() else named):
            break
        names.append(name)
    return names


def resolve_gpus(params: Params, visible: Sequence[str]) -> tuple[str, ...]:
    """Return the names of this job's GPUs; empty means CPU.

    Positions in `gpu_ids` count the visible GPUs, as torch does. Raises JobError naming gpu_ids or
    train_device.
    """
    here = f"this machine has {_span(len(visible))}"
    if params.train_device == "cpu":
        if params.gpu_ids != "auto":
            raise JobError(
                Problem(
                    "gpu_ids",
                    '"auto" with train_device cpu',
                    params.gpu_ids,
                    "A CPU run uses no GPU.",
                )
            )
        return ()
    if params.gpu_ids == "auto":
        if params.train_device == "cuda" and not visible:
            raise JobError(
                Problem(
                    "train_device",
                    "a CUDA GPU on this machine",
                    "cuda, but none is visible",
                    "Use auto or cpu.",
                )
            )
        slices = [name for name in visible if name.startswith("MIG-")]
        return tuple(slices[:1] or visible)  # NCCL cannot join MIG slices
    positions = [int(part) for part in params.gpu_ids.split(",")]
    absent = [position for position in positions if position >= len(visible)]
    problems: list[Problem] = []
    if absent:
        problems.append(
            Problem(
                "gpu_ids", "GPUs that exist", f"{_listed(absent)}; {here}", 'Use "auto" for all.'
            )
        )
    if twice := sorted({position for position in positions if positions.count(position) > 1}):
        problems.append(
            Problem(
                "gpu_ids",
                "each GPU once",
                f"{_listed(twice)} more than once",
                "Name each GPU once.",
            )
        )
    if problems:
        raise JobError(*problems)
    names = tuple(visible[position] for position in positions)
    if len(names) > 1 and any(name.startswith("MIG-") for name in names):
        raise JobError(
            Problem(
                "gpu_ids",
                "one MIG slice",
                params.gpu_ids,
                "MIG slices cannot train together; name one.",
            )
        )
    return names


def _listed(positions: Sequence[int]) -> str:
    return ", ".join(map(str, positions))


def _span(count: int) -> str:
    return {0: "no GPU", 1: "GPU 0"}.get(count, f"GPUs 0-{count - 1}")
