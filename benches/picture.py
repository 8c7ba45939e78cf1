"""Picture of scaling.py: one question a panel, answered by its title."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no window, wherever this runs

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY = "#2f6fb0", "#d9822b", "#3a8f5c", "#555555"
NAMES = {"tiny_modernbert": "ModernBERT\n(half its layers\nsee 128 tokens)", "tiny_llada": "LLaDA"}
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}

Found = Mapping[str, Sequence[Mapping[str, Any]]]


def draw(found: Found, path: Path) -> None:
    """Draw six panels in two rows as a PNG."""
    panels: tuple[Callable[[Axes, Found], None], ...] = (
        _step,
        _once,
        _memory,
        _attention,
        _packing,
        _head_memory,
    )
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(13.5, 7.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
        for panel, area in zip(panels, axes.flat, strict=True):
            panel(area, found)
            area.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            area.set_axisbelow(True)
        figure.savefig(path, dpi=95)
        plt.close(figure)


def _line(area: Axes, x: Sequence[float], y: Sequence[float], color: str) -> None:
    area.plot(x, y, color=color, marker="o")


def _name(area: Axes, name: str, at: tuple[float, float], color: str, right: bool) -> None:
    """Write a line's name next to one of its points instead of in a legend.

    It is right below the point, or left above it.
    """
    side, vertical = ("left", "top") if right else ("right", "bottom")
    offset = (8, -4) if right else (-8, 4)
    area.annotate(name, at, offset, textcoords="offset points", color=color, ha=side, va=vertical)


def _column(records: Sequence[Mapping[str, Any]], name: str, scale: float = 1) -> list[float]:
    return [scale * record[name] for record in records]


def _ticks(area: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    area.set_xscale("log")
    area.set_xticks(places, names)
    area.tick_params(axis="x", which="minor", bottom=False)


def _short(number: float) -> str:
    """Return 1000 as 1k, 1000000 as 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.0f}{letter}"
    return f"{number:.0f}"


def _documents(area: Axes, records: Sequence[Mapping[str, Any]]) -> list[float]:
    sizes = _column(records, "documents")
    _ticks(area, sizes, [_short(size) for size in sizes])
    area.set_xlabel("documents in the dataset")
    return sizes


def _step(area: Axes, found: Found) -> None:
    records = found["documents"]
    sizes, times = _documents(area, records), _column(records, "step_ms")
    _line(area, sizes, times, BLUE)
    area.set_ylim(0, 1.6 * max(times))
    area.set_title("Building a step takes the same time\nat any size of the dataset")
    area.set_ylabel("ms of CPU per step of 32 documents")


def _once(area: Axes, found: Found) -> None:
    records = found["documents"]
    sizes = _documents(area, records)
    for name, color, label, right in (
        ("build_s", BLUE, "collect documents", False),
        ("load_s", ORANGE, "load them", False),
        ("pass_order_s", GREEN, "order of a pass", True),
    ):
        seconds = _column(records, name)
        _line(area, sizes, seconds, color)
        _name(area, label, (sizes[-2], seconds[-2]), color, right)
    area.set_yscale("log")
    area.set_title("What is done once a run or pass\ngrows with the data, and stays short")
    area.set_ylabel("s of CPU")


def _memory(area: Axes, found: Found) -> None:
    records = found["documents"]
    sizes = [size / 1000 for size in _column(records, "documents")]
    _line(area, sizes, _column(records, "loaded_mb"), BLUE)
    area.set_ylim(bottom=0)
    area.set_title("A loaded dataset costs its row names;\ntokens stay on disk")
    area.set_xlabel("documents in the dataset, thousands")
    area.set_ylabel("MB resident after loading, per rank")


def _attention(area: Axes, found: Found) -> None:
    lengths: list[float] = []
    for shape, color, right in (("tiny_modernbert", BLUE, False), ("tiny_llada", ORANGE, True)):
        records = [record for record in found["lengths"] if record["shape"] == shape]
        lengths, shares = _column(records, "length"), _column(records, "attention_share", 100)
        _line(area, lengths, shares, color)
        _name(
            area,
            NAMES[shape],
            (lengths[-4], shares[-4]) if len(lengths) > 3 else (lengths[0], shares[0]),
            color,
            right,
        )
    _ticks(area, lengths, [f"{length:.0f}" for length in lengths])
    area.set_ylim(0, 100)
    area.set_title("Attention takes over beyond\n1,000 tokens a document")
    area.set_xlabel("tokens of each document (8,192 in all)")
    area.set_ylabel("% of the CPU time of a step")


def _vocabularies(area: Axes, records: Sequence[Mapping[str, Any]]) -> list[float]:
    sizes = [size / 1000 for size in _column(records, "vocabulary")]
    area.set_xlim(0, 1.05 * sizes[-1])
    area.set_xlabel("vocabulary, thousands of tokens")
    return sizes


def _packing(area: Axes, found: Found) -> None:
    records = found["packing"]
    tokens, times = _column(records, "tokens", 1e-3), _column(records, "ms_per_1k_tokens")
    _line(area, tokens, times, BLUE)
    area.set_ylim(0, 1.25 * max(times))
    much = "more" if times[-1] > 1.15 * min(times) else "no more"
    area.set_title(f"Documents packed into a fuller\nmicro-batch cost {much} a token")
    area.set_xlabel("tokens of a micro-batch, thousands")
    area.set_ylabel("ms of CPU per 1,000 tokens")


def _head_memory(area: Axes, found: Found) -> None:
    records = found["vocabulary"]
    sizes = _vocabularies(area, records)
    for name, color, label in (
        ("plain_mb", ORANGE, "all logits at once"),
        ("fused_mb", BLUE, "ours, in chunks"),
    ):
        memory = _column(records, name)
        _line(area, sizes, memory, color)
        _name(area, label, (sizes[-2], memory[-2]), color, right=False)
    area.set_ylim(bottom=0)
    area.set_title("The head's memory stops growing:\none chunk of logits exists at a time")
    area.set_ylabel("MB beyond weights and gradients")
