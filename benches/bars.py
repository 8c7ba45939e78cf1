"""Bars of the CPU and GPU benches: with `--bars` they fail and name every missed bar."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """Bounds of one shape: ratios of CPU time at least, of peak memory at most."""

    vs_grouped: float
    vs_random: float
    rss_ratio: float | None = None


SHAPES = {
    "tiny_modernbert": Bar(3.5, 8.0, 0.45),
    "tiny_llada": Bar(3.5, 6.0, 0.45),
    "tiny_dream": Bar(3.5, 6.0, 0.45),
    "modernbert_base": Bar(1.35, 1.8),
}
AGREEMENT = 1e-5
PACKING = 0.98


@dataclass(frozen=True)
class Limit:
    """Bounds of one figure of a case of the GPU bench, on an H100 or H200."""

    figure: str
    least: float = -math.inf
    most: float = math.inf

    def missed_by(self, value: float | None) -> str:
        """Return the bound that a value misses, in words; no number misses every bound."""
        value = math.nan if value is None else value
        if not value >= self.least:
            return f"expected at least {self.least}"
        return "" if value <= self.most else f"expected at most {self.most}"


FIRST_STEP = (Limit("first_step_cold_s", most=25), Limit("first_step_warm_s", most=8))
ESTIMATE = Limit("foretold_of_taken", least=0.9, most=1.1)
LOGITS = Limit("foretold_logits_gb", most=1.61)  # 1.5 GiB
EVERY = (*FIRST_STEP, ESTIMATE, LOGITS)
MEMORY = Limit("memory_vs_padded", most=0.35)
GPU_CASES = {
    "modernbert_base_full_alpaca": (MEMORY, *EVERY),
    "modernbert_base_full_alpaca_cuda_graphs": (
        Limit("step_ms", most=20),
        Limit("tokens_per_s", least=155_000),
        Limit("vs_padded", least=17),
        MEMORY,
        *EVERY,
    ),
    "modernbert_base_full_tulu": (MEMORY, *EVERY),
    "llada_8b_lora_alpaca": (Limit("vs_padded", least=4), MEMORY, *EVERY),
    "modernbert_base_full_rows": (Limit("mfu", least=0.40), *EVERY),
    "modernbert_large_full_rows": EVERY,  # 48 % would be a stretch; it was never measured
    "llada_8b_lora_rows": (Limit("mfu", least=0.60), *EVERY),
    "dream_7b_lora_rows": (Limit("mfu", least=0.60), *EVERY),
    "llada_8b_qlora_rows": (Limit("peak_gb", most=12), *EVERY),
    # at least 1.3 times the bar of bfloat16, as a share of the bfloat16 peak
    "llada_8b_lora_rows_float8": (Limit("mfu", least=0.78), *EVERY),
    "llada_8b_full_rows": (Limit("mfu", least=0.47), *EVERY),
    # issue 16: row tokens count, the clean document's and its copies'; never measured
    "smollm2_135m_full_tulu_block": (Limit("mfu", least=0.25), *EVERY),
    "qwen3_06b_full_tulu_block": (Limit("mfu", least=0.25), *EVERY),
    "worker": (Limit("worker_ratio", least=0.95, most=1.05), FIRST_STEP[1], ESTIMATE, LOGITS),
}


def missed_on_gpu(report: Mapping[str, Any]) -> list[str]:
    """Return every bar that the report of gpu.py misses, in words.

    A case that failed misses all of its bars, in one line.
    """
    return list(_missed_on_gpu(report))


def _missed_on_gpu(report: Mapping[str, Any]) -> Iterator[str]:
    for name, case in report["cases"].items():
        if "error" in case:
            yield f"{name}: {case['error']}"
            continue
        for limit in GPU_CASES[name]:
            value = case.get(limit.figure)
            if bound := limit.missed_by(value):
                yield f"{name} {limit.figure}: {value}, {bound}"


def missed(summary: Mapping[str, Any]) -> list[str]:
    """Return every bar that the summary of throughput.py misses, in words.

    A figure that is no number misses its bar.
    """
    return list(_missed(summary))


def _missed(summary: Mapping[str, Any]) -> Iterator[str]:
    for name, found in summary["shapes"].items():
        bar = SHAPES[name]
        for key, least in (("vs_grouped", bar.vs_grouped), ("vs_random", bar.vs_random)):
            if not found[key] >= least:
                yield f"{name} {key}: {found[key]}, expected at least {least}"
        if bar.rss_ratio is not None and not found["rss_ratio"] <= bar.rss_ratio:
            yield f"{name} rss_ratio: {found['rss_ratio']}, expected at most {bar.rss_ratio}"
    for key in ("loss_agreement", "grad_agreement"):
        if not summary[key] <= AGREEMENT:
            yield f"{key}: {summary[key]}, expected at most {AGREEMENT}"
    if summary["leak"] != 0:
        yield f"leak: {summary['leak']}, expected 0"
    if not summary["packing_efficiency"] >= PACKING:
        yield f"packing_efficiency: {summary['packing_efficiency']}, expected at least {PACKING}"
