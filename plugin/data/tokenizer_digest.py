"""Digest of a tokenizer: equal for tokenizers that give every text the same ids."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_OF_A_CALL = ("truncation", "padding")  # which each call of a tokenizer sets anew


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 32 hex digits over vocabulary, merges, normaliser, added tokens and special ids."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: dict[str, Any] = {
            "vocabulary": tokenizer.get_vocab(),
            "added": {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items()},
        }
    else:
        content = {
            name: value
            for name, value in json.loads(backend.to_str()).items()
            if name not in _OF_A_CALL
        }
    content["special_ids"] = {role: getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
