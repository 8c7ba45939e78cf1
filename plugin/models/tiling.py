"""Tiled weights: a larger model that begins as the repetition of a smaller one of its family.

Source: AnswerDotAI/ModernBERT, src/bert_layers (mode `tile_weights_from_middle`, and the map of
layers of init_model_from_pretrained), after Phi (arXiv 2306.11644) and Gopher (arXiv 2112.11446).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..base.errors import Code, JobError, Problem
from ..config.families import FAMILIES
from .attention import head_width
from .configuration import embedding_rows

Shape = tuple[int, ...]

# Linear layers that hold several projections one below the other, and how many. Each is tiled by
# itself: tiled as one matrix, rows of the queries would become keys.
FUSED = {"modernbert": {"attn.Wqkv": 3, "mlp.Wi": 2}}
_LAYER = re.compile(r"(.*\.(?:layers?|blocks)\.)(\d+)(\..+)")
# ModernBERT's first layer has none, since its input is normalised already.
_NOT_OF_THE_FIRST = ".attn_norm."
# Fields that have to be the same: a table's rows are tokens, positions and segments, each of which
# has its meaning, and a head or an activation of another kind would not know the weights.
_SAME = (
    "type_vocab_size",
    "tie_word_embeddings",
    "hidden_act",
    "hidden_activation",
    "position_embedding_type",
)
_AT_LEAST = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def layer_map(small: int, large: int) -> list[int]:
    """Return the layer of the smaller model that each layer of the larger one is made from.

    round(i small / large), halves to even. Where that is beyond the last layer (at half the layers
    or fewer), it is the last.
    """
    return [min(round(i * small / large), small - 1) for i in range(large)]


def tile(weight: Tensor, shape: Shape) -> Tensor:
    """Repeat a weight over a larger shape, the original in the middle.

    new[r, c] = weight[(r - (H - h) // 2) mod h, (c - (W - w) // 2) mod w] for [h, w] and [H, W]; a
    vector has rows alone.
    """
    for axis, (size, before) in enumerate(zip(shape, weight.shape, strict=True)):
        places = (torch.arange(size, device=weight.device) - (size - before) // 2) % before
        weight = weight.index_select(axis, places)
    return weight


def tile_parts(weight: Tensor, shape: Shape, parts: int) -> Tensor:
    """Tile each of `parts` equal parts of the rows by itself."""
    of_part = (shape[0] // parts, *shape[1:])
    return torch.cat([tile(part, of_part) for part in weight.chunk(parts)])


def tile_into(model: PreTrainedModel, small: PreTrainedModel) -> None:
    """Give `model` the tiled weights of `small`, in place.

    Embeddings and head are repeated by columns, because their rows are the same. A norm that the
    source has nowhere keeps its new weights. Raises JobError (exit 4) with everything that cannot
    be tiled.
    """
    check_tiling(model.config, small.config)
    weights = dict(small.named_parameters(remove_duplicate=False))
    sources = _sources(model, small.config)
    missing = [name for name, source in sources.items() if source not in weights]
    if others := [name for name in missing if _NOT_OF_THE_FIRST not in name]:
        raise JobError(_tensor_problem(others))
    fused = FUSED.get(model.config.model_type, {})
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name not in missing:
                parts = next((n for part, n in fused.items() if f".{part}." in name), 1)
                weight.copy_(tile_parts(weights[sources[name]], tuple(weight.shape), parts))


def _sources(model: nn.Module, small: PretrainedConfig) -> dict[str, str]:
    """Map the name of each tensor of `model` to that of the smaller model's tensor."""
    names = [name for name, _ in model.named_parameters()]
    matches = {name: found for name in names if (found := _LAYER.fullmatch(name))}
    layers = max(int(found[2]) for found in matches.values()) + 1
    chosen = layer_map(small.num_hidden_layers, layers)
    moved = {
        name: f"{found[1]}{chosen[int(found[2])]}{found[3]}" for name, found in matches.items()
    }
    return {name: moved.get(name, name) for name in names}


def check_tiling(large: PretrainedConfig, small: PretrainedConfig) -> None:
    """Refuse a source whose weights cannot be tiled to `large`.

    Raises JobError (exit 4) naming init_from; its one problem lists every reason, because a worker
    reports one.
    """
    if large.model_type != small.model_type:
        expected, got = f"a {large.model_type} model, as model_config is", f"a {small.model_type}"
        raise JobError(_problem(expected, got))
    if found := [*_of_sizes(large, small), *_of_heads(large, small)]:
        expected, got = (", ".join(texts) for texts in zip(*found, strict=True))
        raise JobError(_problem(f"a model that fits model_config: {expected}", got))


def _of_sizes(large: PretrainedConfig, small: PretrainedConfig) -> list[tuple[str, str]]:
    """List (expected, got) of the sizes that do not fit."""
    found: list[tuple[str, str]] = []
    for name in _AT_LEAST:
        most, size = getattr(large, name), getattr(small, name)
        if size > most:
            found.append((f"{name} at most {most}", f"{name} {size}"))
    rows = {"vocabulary": (embedding_rows(large), embedding_rows(small))}
    if FAMILIES[large.model_type].max_positions:
        both = (large.max_position_embeddings, small.max_position_embeddings)
        rows["max_position_embeddings"] = both
    for name in _SAME:
        rows[name] = (_field(large, name), _field(small, name))
    for name, (wanted, got) in rows.items():
        if wanted != got:
            found.append((f"{name} {wanted}", f"{name} {got}"))
    return found


def _of_heads(large: PretrainedConfig, small: PretrainedConfig) -> list[tuple[str, str]]:
    """List (expected, got) of head counts that do not tile.

    A head is repeated as it is, so its width stays. The original heads lie in the middle and have
    to begin where a head begins: otherwise RoPE would turn each row at the speed of another one.
    Grouped heads keep their key head.
    """
    heads, before = large.num_attention_heads, small.num_attention_heads
    found: list[tuple[str, str]] = []
    width, narrow = head_width(large), head_width(small)
    if width != narrow:
        found.append((f"heads {width} wide", f"heads {narrow} wide"))
    if (heads - before) % 2:
        wanted = "even" if heads % 2 == 0 else "odd"
        found.append((f"an {wanted} number of heads", f"num_attention_heads {before}"))
    group, other = (
        count // _key_heads(config) for count, config in ((heads, large), (before, small))
    )
    if group != other:
        found.append((f"{group} heads for each key head", f"{other} for each"))
    return found


def _key_heads(config: PretrainedConfig) -> int:
    return _field(config, "num_key_value_heads") or config.num_attention_heads


def _field(config: PretrainedConfig, name: str) -> Any:
    return getattr(config, name, None)


def _tensor_problem(missing: list[str]) -> Problem:
    shown = ", ".join(missing[:3]) + (f", ... ({len(missing)} in all)" if missing[3:] else "")
    return _problem("the tensors of model_config, biases included", f"no source of {shown}")


def _problem(expected: str, got: str) -> Problem:
    fix = "The larger model's configuration says what can be repeated."
    return Problem("init_from", expected, got, fix, Code.MODEL)
