"""Mask token of a causal LM, whose tokenizer names none, and its row of the embedding table.

A tokenizer's content alone decides, so that every program finds the same token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

# Names under which published diffusion models keep their mask.
KNOWN = ("<|MASK|>", "<|mask|>", "<|mdm_mask|>")
# Llama 3 has 250 of them; a fine-tuned model may use the first ones.
RESERVED = tuple(f"<|reserved_special_token_{number}|>" for number in range(16))
# SmolLM2's table has no free row. Its tokens 3 to 16 are markers of code with rows that were never
# trained: all have the same norm, near the median.
MARKERS = ("<reponame>", "<gh_stars>", "<jupyter_script>", "<empty_output>")
# Tokens by which a tokenizer is known -> the name of the mask behind its vocabulary. SDAR calls
# Qwen3's row 151669 so, and sglang and lmdeploy look for the mask of an SDAR model there.
_TABLE = {("<|im_end|>", "<tool_response>", "</think>"): "<|MASK|>"}
_ADDED = "<|mask|>"
MULTIPLE = 64  # rows of a table that has to grow: keeps the output layer's products fast


def name_mask_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give a tokenizer a mask token, in place. Return in words which one and why."""
    words = tokenizer.get_vocab()
    roles = set(_roles(tokenizer).values())

    def found(names: Iterable[str]) -> str | None:
        return next((name for name in names if name in words and words[name] not in roles), None)

    if name := found(KNOWN):
        why = "a mask by its name"
    elif name := found(RESERVED):
        why = "a reserved token"
    elif name := found(MARKERS):
        why = "a rare marker of code"
    else:
        why = f"added behind its {len(tokenizer):,} tokens"
        name = next(
            (mask for tokens, mask in _TABLE.items() if all(token in words for token in tokens)),
            _ADDED,
        )
    tokenizer.add_special_tokens({"mask_token": AddedToken(name, special=True, normalized=False)})
    return f"it names no mask token; {name} (id {tokenizer.mask_token_id}), {why}, becomes it"


def role_of_mask(owner: Any, mask_id: int) -> str:
    """Return the other role of a mask's id in a tokenizer or a configuration; empty without one."""
    return next((role for role, id_ in _roles(owner).items() if id_ == mask_id), "")


def _roles(owner: Any) -> dict[str, int]:
    """Return the ids of the tokens that cannot be the mask: a model has to write them, or skip them."""
    found: dict[str, int] = {}
    for role in ("eos", "pad", "bos"):
        ids = getattr(owner, f"{role}_token_id", None)
        for number, id_ in enumerate(ids if isinstance(ids, list) else [ids]):
            if id_ is not None:
                found[f"{role}_token_id" + (f"[{number}]" if number else "")] = id_
    return found


@torch.no_grad()
def settle_row(model: PreTrainedModel, mask_id: int) -> str:
    """Give a mask that no training has seen a row of ordinary size, in place.

    A row within half and twice the table's median norm stays. Rows that were never trained may have
    decayed to almost nothing, on which a norm layer's gradient explodes (LLaDA2.0's report,
    section 7.1); such a row becomes the mean of the table at the median norm. Returns in words what
    was done; empty for a row that stays.
    """
    embedding: Any = model.get_input_embeddings()
    table: torch.Tensor = embedding.weight
    norms = torch.linalg.vector_norm(table, dim=-1, dtype=torch.float32)
    median, norm = norms.median(), norms[mask_id]
    if median / 2 <= norm <= 2 * median:
        return ""
    mean = table.mean(0, dtype=torch.float32)
    table[mask_id] = (mean * (median / mean.norm().clamp(min=1e-12))).to(table.dtype)
    return (
        f"mask token: its row has the norm {norm:.3g}, the median is {median:.3g}; it begins as the"
        " mean of all rows at the median norm"
    )


@torch.no_grad()
def fill_rows(model: PreTrainedModel, first: int) -> None:
    """Make the rows from `first` on the mean of those before, in both tables, in place.

    A mean says nothing of its own, and merging an adapter finds the same values again.
    """
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
        weight: torch.Tensor = getattr(layer, "weight")  # noqa: B009
        weight[first:] = weight[:first].mean(0, dtype=torch.float32).to(weight.dtype)
