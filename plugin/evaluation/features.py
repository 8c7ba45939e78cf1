"""Features of texts by an encoder as transformers' AutoModel loads it, and their latency.

S texts, T tokens of the longest of a batch, D width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..base.errors import model_error

BATCH = 32
BATCHES = (1, 32)  # whose latency is measured
REPEATS = 5
SINGLES = 8  # texts of one repeat at batch 1


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder with its tokenizer, on a device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    max_length: int

    def pooled(self, texts: Sequence[str]) -> Tensor:
        """Return the mean of each text's last hidden states [S, D], padding left out.

        Gradients flow as the caller allows.
        """
        inputs: Any = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            padding=True,
            return_tensors="pt",
        )
        ids, mask = (inputs[name].to(self.device) for name in ("input_ids", "attention_mask"))
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # [S, T, D]
        seen = mask[..., None].to(hidden.dtype)
        return (hidden * seen).sum(1) / seen.sum(1).clamp(min=1)

    def features(self, texts: Sequence[str]) -> Tensor:
        """Return pooled features [S, D] on the CPU, without gradients.

        Texts of similar lengths share a batch.
        """
        self.model.eval()
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(order), BATCH):
                batch = [texts[place] for place in order[start : start + BATCH]]
                found.append(self.pooled(batch).float().cpu())
        return torch.cat(found)[torch.tensor(order).argsort()]

    def randomised(self, seed: int) -> Encoder:
        """Return an encoder of the same architecture with new weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModel.from_config(self.model.config, dtype=torch.float32)
        return Encoder(
            model=model.to(self.device).eval(),
            tokenizer=self.tokenizer,
            device=self.device,
            max_length=self.max_length,
        )


def load_encoder(folder: Path, device: torch.device, max_length: int) -> Encoder:
    """Load an exported encoder as any user does: AutoModel, without code of the folder.

    Raises JobError (exit 4) for a folder that lacks weights of its architecture.
    """
    loaded: Any = AutoModel.from_pretrained(
        folder,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    model, report = loaded
    # BERT's and RoBERTa's classes have a pooler, which a masked LM does not train.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing or report["mismatched_keys"]:
        raise model_error("model", "all weights of an encoder", f"{folder}: no {missing[:3]}")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return Encoder(
        model=model.to(device).eval(), tokenizer=tokenizer, device=device, max_length=max_length
    )


def latency(encoder: Encoder, texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return milliseconds a document and documents a second, from text to vector, by batch size.

    Each is the median of REPEATS over the same texts, after one run to warm up.
    """
    found: dict[str, dict[str, float]] = {}
    for size in BATCHES:
        count = SINGLES if size == 1 else size
        chosen = [texts[place % len(texts)] for place in range(count)]
        batches = [chosen[start : start + size] for start in range(0, count, size)]
        _timed(encoder, batches)
        seconds = statistics.median(_timed(encoder, batches) for _ in range(REPEATS))
        found[str(size)] = {
            "ms_per_document": round(1000 * seconds / count, 3),
            "documents_per_s": round(count / seconds, 1),
        }
    return found


def _timed(encoder: Encoder, batches: Sequence[Sequence[str]]) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            encoder.pooled(batch).cpu()  # waits for the device
    return time.perf_counter() - began
