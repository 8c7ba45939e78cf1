"""Texts as token ids in bulk, without special tokens.

fastokens encodes about forty times faster than `tokenizers`. Where it knows the tokenizer, it is
used, and its ids are compared with those of `tokenizers` on the first documents of every run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import fastokens
import numpy as np
from numpy.typing import NDArray

from ..base.errors import first_line
from .chat import ChatFormat, Flat

CHECKED = 1000  # documents whose ids are compared


class BulkTokenizer:
    """Encoder of many texts together; it gives the ids that `ChatFormat.plain_ids` gives.

    `engine` is fastokens or tokenizers; `log` takes the reason for the slower one. The ids of the
    first `checks` documents are compared.
    """

    def __init__(
        self,
        chat: ChatFormat,
        log: Callable[[str], None] = lambda line: None,
        *,
        checks: int = CHECKED,
    ):
        self._chat, self._log, self._checks = chat, log, checks
        self.checked = 0
        self._fast, why = _fast_tokenizer(chat.tokenizer)
        self.engine = "fastokens" if self._fast is not None else "tokenizers"
        if why:
            self._log(f"tokenizer: texts are encoded by tokenizers, as fastokens says {why}")

    def encode(self, texts: Sequence[str]) -> Flat:
        """Return the ids of all texts, one after the other, and where each text begins."""
        if self._fast is None:
            return _flat(self._chat.plain_ids(texts))
        ids, ends = self._fast.encode_batch_flat(list(texts), split_special_tokens=True)
        found = np.frombuffer(ids, np.uint32), np.frombuffer(ends, np.uint64).astype(np.int64)
        spelled = [place for place, text in enumerate(texts) if self._chat.spells_token(text)]
        if spelled:
            found = _replaced(found, spelled, self._chat.plain_ids([texts[i] for i in spelled]))
        return found if self._agrees(texts, found) else self.encode(texts)

    def _agrees(self, texts: Sequence[str], found: Flat) -> bool:
        """Compare the first documents of this run; a difference switches the engine."""
        some = texts[: self._checks - self.checked]
        if not some:
            return True
        ids, offsets = _flat(self._chat.plain_ids(some))
        self.checked += len(some)
        same = np.array_equal(offsets, found[1][: len(some) + 1]) and np.array_equal(
            ids, found[0][: ids.size]
        )
        if not same:
            self._fast, self.engine = None, "tokenizers"
            self._log("tokenizer: fastokens gave other ids; texts are encoded by tokenizers")
        return same


def _fast_tokenizer(tokenizer: Any) -> tuple[fastokens.Tokenizer | None, str]:
    """Return (the tokenizer as fastokens reads it, "") or (None, the reason why it cannot)."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content |= {"truncation": None, "padding": None}  # a call has set them
    try:
        return fastokens.Tokenizer.from_json_str(json.dumps(content)), ""
    except Exception as error:  # its errors have no common type
        return None, first_line(error)


def _flat(lists: Sequence[Sequence[int]]) -> Flat:
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    ids = np.fromiter((token for ids in lists for token in ids), np.uint32, count=offsets[-1])
    return ids, offsets


def _replaced(found: Flat, places: Sequence[int], instead: Sequence[Sequence[int]]) -> Flat:
    """Return `found` with the ids of the texts at `places` replaced."""
    parts = np.split(found[0], found[1][1:-1])
    for place, ids in zip(places, instead, strict=True):
        parts[place] = np.array(ids, np.uint32)
    offsets = np.cumsum([0, *(part.size for part in parts)], dtype=np.int64)
    return cast("NDArray[np.uint32]", np.concatenate(parts)), offsets
