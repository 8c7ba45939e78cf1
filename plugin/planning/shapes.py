"""Shapes that are slow on GPUs, from the fields of a config.json.

Tensor cores multiply in tiles: sizes that are multiples of 64 leave none of them partly filled, and
attention kernels are written for heads of 64 and 128. Source: NVIDIA, "Matrix Multiplication
Background User's Guide" and the head sizes of FlashAttention-2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

TILE = 64
HEAD_WIDTHS = (64, 128)
# Names of the same size in the configurations of the families.
_WIDTH = ("d_model", "hidden_size")
_INNER = ("mlp_hidden_size", "intermediate_size")
_HEADS = ("n_heads", "num_attention_heads")
_VOCABULARY = ("embedding_size", "vocab_size")


@dataclass(frozen=True)
class SlowShape:
    """A field whose value is slow, and the nearest value that is not."""

    field: str
    value: int
    better: int
    why: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def line(self) -> str:
        return f"warning: {self.field}: {self.value} {self.why}; the nearest good value is {self.better}"


def slow_shapes(config: Mapping[str, Any]) -> Iterator[SlowShape]:
    """Yield the sizes of a configuration that waste a GPU's work, in the order of its fields."""
    for names, label in ((_WIDTH, "width"), (_INNER, "feed-forward width")):
        field, value = _field(config, names)
        if value % TILE:
            better = max(TILE, round(value / TILE) * TILE)
            yield SlowShape(field, value, better, f"is no multiple of {TILE} ({label})")
    field, value = _field(config, _VOCABULARY)
    if value % TILE:
        # A vocabulary only grows: every word keeps its row.
        yield SlowShape(field, value, -(-value // TILE) * TILE, f"is no multiple of {TILE} rows")
    yield from _slow_heads(config)


def _slow_heads(config: Mapping[str, Any]) -> Iterator[SlowShape]:
    field, heads = _field(config, _HEADS)
    _, width = _field(config, _WIDTH)
    if width // heads in HEAD_WIDTHS and width % heads == 0:
        return
    good = [width // each for each in HEAD_WIDTHS if width % each == 0]
    # A width that no head of 64 divides has a warning of its own; its nearest good width decides.
    wide = max(TILE, round(width / TILE) * TILE)
    good = good or [wide // each for each in HEAD_WIDTHS if wide % each == 0]
    better = min(good, key=lambda count: abs(count - heads))
    shown = f"{width / heads:g}"
    yield SlowShape(field, heads, better, f"makes heads {shown} wide, not 64 or 128")


def _field(config: Mapping[str, Any], names: tuple[str, str]) -> tuple[str, int]:
    """Return the field's name in this family, and its value."""
    name = next(name for name in names if config.get(name) is not None)
    return name, config[name]
