"""Rules of block diffusion: its block sizes, its warm-up, and the options that it cannot have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ...base.errors import Problem
from ..fields import MOST_RUN_TOKENS, MOST_TOKENS
from ..methods import METHODS
from ..params import Params
from ..wording import expected, quoted
from .stage import check_pretrain

MOST_PAIRS, DIGITS = 1000, 16  # of a schedule, of a number in it


def check_blocks(params: Params) -> Iterator[Problem]:
    """Check parameters of block diffusion against one another."""
    method = METHODS[params.training_method]
    if not method.blocks:
        return
    if params.ar_loss_weight and params.clean_context != "causal":
        yield Problem(
            "ar_loss_weight",
            "clean_context causal as well",
            f"{params.ar_loss_weight:g} with clean_context {params.clean_context}",
            "A clean token sees its whole block, so that it would be told the tokens it predicts.",
        )
    if isinstance(params.block_size, int):
        yield from _check_size(params, params.block_size, "block_size")
    yield from _check_schedule(params)
    in_steps = params.num_train_epochs == 0 and params.train_tokens == 0
    if in_steps and params.noise_warmup_steps > params.train_steps:
        most = f"at most the {params.train_steps} steps of the run"
        yield Problem("noise_warmup_steps", most, str(params.noise_warmup_steps))
    if params.packing == "off":
        fix = "A document and its noisy copies are packed."
        yield Problem("packing", f"auto or on with {method.name}", "off", fix)
    if params.attn_implementation not in ("auto", "sdpa"):
        yield Problem(
            "attn_implementation",
            f"auto or sdpa with {method.name}",
            params.attn_implementation,
            "No other kernel knows which blocks see each other.",
        )
    if params.cuda_graphs:
        fix = "Graphs are captured with varlen attention alone."
        yield Problem("cuda_graphs", f"false with {method.name}", "true", fix)


def _check_size(params: Params, size: int, field: str) -> Iterator[Problem]:
    if size > params.max_length:
        most = f"at most max_length ({params.max_length})"
        yield Problem(field, most, str(size), "A block is a part of a document.")


def _check_schedule(params: Params) -> Iterator[Problem]:
    name, text = "block_schedule", params.block_schedule
    if not text:
        return
    yield from check_pretrain(params, name)
    if not (pairs := schedule_pairs(text)):
        yield Problem(name, expected(name), quoted(text))
        return
    begins = [begin for begin, _ in pairs]
    if begins[0] != 0 or begins != sorted(set(begins)):
        yield Problem(name, "tokens that rise from 0", quoted(text))
    yield from _check_size(params, max(size for _, size in pairs), name)
    last = pairs[-1][1]
    if params.block_size not in ("auto", last):
        size = f"block_size ({params.block_size}) as its last size"
        yield Problem(name, size, str(last), "Or leave block_size auto.")


def schedule_pairs(text: str) -> list[tuple[int, int]] | None:
    """Read a `block_schedule`: pairs of whole numbers, at least one. None for anything else."""
    try:
        return _pairs(json.loads(text)) or None
    except (ValueError, RecursionError):
        return None


def _pairs(value: Any) -> list[tuple[int, int]] | None:
    if not isinstance(value, list) or len(value) > MOST_PAIRS:
        return None
    found: list[tuple[int, int]] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            return None
        begin, size = (_whole(number) for number in pair)
        if begin is None or begin > MOST_RUN_TOKENS or not size or size > MOST_TOKENS:
            return None
        found.append((begin, size))
    return found


def _whole(value: object) -> int | None:
    """Return a whole number; a configuration file in YAML holds its digits."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= DIGITS:
        return int(value)
    return value if type(value) is int and value >= 0 else None


def schedule_text(value: object) -> object:
    """Return the text of a schedule that a configuration file holds as a list; others unchanged."""
    pairs = _pairs(value)
    return value if pairs is None else json.dumps(pairs)
