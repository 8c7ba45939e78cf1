"""GPUs by name: peak and memory by their vendor's data sheet, and the share of it that was measured.

Peak: dense bfloat16 products with float32 accumulation, in FLOP/s. Data sheets of data-centre GPUs
print twice that, for sparse products. GeForce: the tables of NVIDIA's architecture white papers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "benches" / "results"


@dataclass(frozen=True)
class GpuModel:
    """A GPU of the table."""

    name: str
    peak: float  # FLOP/s
    memory: int  # bytes
    source: str
    words: tuple[str, ...]  # all of them in the name by which its driver calls it


def _gpu(name: str, tera: float, giga: int, source: str, *words: str) -> GpuModel:
    return GpuModel(name, tera * 1e12, giga * 10**9, source, words)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100-40", 312, 40, "NVIDIA A100 data sheet", "A100", "40GB"),
        _gpu("A100-80", 312, 80, "NVIDIA A100 data sheet", "A100", "80GB"),
        _gpu("H100", 989.5, 80, "NVIDIA H100 data sheet, SXM", "H100", "HBM3"),
        _gpu("H100-PCIe", 756.5, 80, "NVIDIA H100 data sheet, PCIe", "H100", "PCIe"),
        _gpu("H200", 989.5, 141, "NVIDIA H200 data sheet, SXM", "H200"),
        _gpu("B200", 2250, 180, "NVIDIA HGX B200 data sheet", "B200"),
        _gpu("L4", 121, 24, "NVIDIA L4 data sheet", "L4"),
        _gpu("L40S", 362, 48, "NVIDIA L40S data sheet", "L40S"),
        _gpu("A10", 125, 24, "NVIDIA A10 data sheet", "A10"),
        _gpu("RTX-3090", 71, 24, "NVIDIA Ampere GA102 white paper", "RTX", "3090"),
        _gpu("RTX-4090", 165.2, 24, "NVIDIA Ada white paper", "RTX", "4090"),
        _gpu("RTX-5090", 209.5, 32, "NVIDIA RTX Blackwell white paper", "RTX", "5090"),
    )
}


def gpu_of_device(device: str) -> GpuModel | None:
    """Return the GPU that a driver calls `device`, such as `NVIDIA A100-SXM4-80GB`, or None."""
    words = set(device.replace("-", " ").split())
    return next((gpu for gpu in GPUS.values() if set(gpu.words) <= words), None)


@dataclass(frozen=True)
class Measured:
    """Share of a GPU's data-sheet peak that useful work of training reached, and its origin."""

    share: float
    gpu: GpuModel | None  # None where a user states the share
    parameters: int
    origin: str


def measurements(folder: Path = RESULTS) -> list[Measured]:
    """Read the results of `make bench DEVICE=cuda`: full training on full rows in bfloat16.

    A case's `mfu` is a share of a matrix product measured in the same process (`matmul_tflops`);
    here it becomes a share of the data sheet's peak. Files of other benches are skipped.
    """
    found: list[Measured] = []
    for path in sorted(folder.glob("*.json")):
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cases = report.get("cases")
        gpu = gpu_of_device(str(report.get("device", "")).partition(",")[0])
        if gpu is None or not isinstance(cases, dict):
            continue
        for name, case in cases.items():
            if not name.endswith("_full_rows") or not case.get("mfu"):
                continue
            share = case["mfu"] * case["matmul_tflops"] * 1e12 / gpu.peak
            origin = f"measured on {report['device']} ({name}, {path.name})"
            found.append(Measured(share, gpu, case["parameters"], origin))
    return found


def choose_measured(gpu: GpuModel, parameters: int, found: Iterable[Measured]) -> Measured | None:
    """Return the measurement on this GPU, else on another one, of the model nearest in size."""

    def distance(one: Measured) -> tuple[bool, float]:
        return one.gpu != gpu, abs(math.log(one.parameters / parameters))

    return min(found, key=distance, default=None)
