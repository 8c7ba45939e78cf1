"""Bars of the CPU bench; `benches/throughput.py --bars` fails and names every missed bar."""

from __future__ import annotations

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
