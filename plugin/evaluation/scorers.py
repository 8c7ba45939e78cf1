"""The offline scorers by name."""

from __future__ import annotations

from . import exact, gsm8k, infill, mt_bench, perplexity, reverse
from .scorer import Read

SCORERS: dict[str, Read] = {
    "gsm8k": gsm8k.read_gsm8k,
    "exact": exact.read_exact,
    "reverse": reverse.read_reverse,
    "infill": infill.read_infill,
    "mt_bench": mt_bench.read_mt_bench,
    "perplexity": perplexity.read_perplexity,
}
