"""Rules of block diffusion: its block sizes, its warm-up, and the options that it cannot have."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .fields import MOST_RUN_TOKENS, MOST_TOKENS
from .methods import METHODS
from .params import Params
from .wording import expected, quoted

Require = Callable[..., None]
MOST_PAIRS, DIGITS = 1000, 16  # of a schedule, of a number in it


def check_blocks(params: Params, require: Require) -> None:
    """Check parameters of block diffusion against one another; `require` as in rules.cross_checks."""
    method = METHODS[params.training_method]
    if not method.blocks:
        return
    require(
        not params.ar_loss_weight or params.clean_context == "causal",
        "ar_loss_weight",
        "clean_context causal as well",
        f"{params.ar_loss_weight:g} with clean_context {params.clean_context}",
        "A clean token sees its whole block, so that it would be told the tokens it predicts.",
    )
    if isinstance(params.block_size, int):
        _check_size(params, params.block_size, "block_size", require)
    _check_schedule(params, require)
    in_steps = params.num_train_epochs == 0 and params.train_tokens == 0
    require(
        not in_steps or params.noise_warmup_steps <= params.train_steps,
        "noise_warmup_steps",
        f"at most the {params.train_steps} steps of the run",
        str(params.noise_warmup_steps),
    )
    require(
        params.packing != "off",
        "packing",
        f"auto or on with {method.name}",
        "off",
        "A document and its noisy copies are packed.",
    )
    require(
        params.attn_implementation in ("auto", "sdpa"),
        "attn_implementation",
        f"auto or sdpa with {method.name}",
        params.attn_implementation,
        "No other kernel knows which blocks see each other.",
    )
    require(
        not params.cuda_graphs,
        "cuda_graphs",
        f"false with {method.name}",
        "true",
        "Graphs are captured with varlen attention alone.",
    )


def _check_size(params: Params, size: int, field: str, require: Require) -> None:
    require(
        size <= params.max_length,
        field,
        f"at most max_length ({params.max_length})",
        str(size),
        "A block is a part of a document.",
    )


def _check_schedule(params: Params, require: Require) -> None:
    if not params.block_schedule:
        return
    name = "block_schedule"
    require(
        params.training_stage == "pretrain",
        name,
        "training_stage pretrain as well",
        params.training_stage,
        "Only a step of packs has a fixed number of tokens.",
    )
    pairs = schedule_pairs(params.block_schedule)
    require(pairs is not None, name, expected(name), quoted(params.block_schedule))
    if not pairs:
        return
    begins = [begin for begin, _ in pairs]
    rising = begins[0] == 0 and begins == sorted(set(begins))
    require(rising, name, "tokens that rise from 0", quoted(params.block_schedule))
    _check_size(params, max(size for _, size in pairs), name, require)
    last = pairs[-1][1]
    require(
        params.block_size in ("auto", last),
        name,
        f"block_size ({params.block_size}) as its last size",
        str(last),
        "Or leave block_size auto.",
    )


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


def without_effect_on_blocks(params: Params) -> dict[str, str]:
    """Return {name: reason} of the parameters that have no effect on blocks."""
    if METHODS[params.training_method].blocks and params.mask_half_life:
        return {"mask_count": "has no effect unless mask_half_life is 0."}
    return {}
