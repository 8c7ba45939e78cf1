"""Model shapes and length histograms of the benches: random weights, real shapes, no data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, PretrainedConfig

from plugin.models.published import REGISTRY

# Lognormal fits: (mean tokens, sigma of the logarithm, shortest, longest, share of a document that
# is its answer).
LENGTHS = {
    "alpaca": (92, 0.75, 16, 512, 0.65),
    "tulu": (380, 0.9, 24, 2048, 0.60),
    "long": (2200, 0.6, 256, 8192, 0.50),
}
MEGA_BATCH = 50  # micro-batches that transformers' LengthGroupedSampler sorts together
_SPECIAL = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


@dataclass(frozen=True)
class Shape:
    name: str
    model_type: str
    fields: dict[str, Any]
    batch_size: int  # documents of a micro-batch

    @property
    def vocabulary(self) -> int:
        return int(self.fields["vocab_size"])

    @property
    def longest(self) -> int:
        config = self.config()
        return int(config.max_position_embeddings)

    def narrow(self) -> Shape:
        """Return the family's shape with two layers and few of everything: to try code on a CPU."""
        small = {"vocab_size": 512} | {
            name: value for name, value in _NARROW.items() if name in self.fields
        }
        return replace(self, fields={**self.fields, **small}, batch_size=2)

    def few(self) -> Shape:
        """Return the shape with at most four documents in a micro-batch: enough to compare results."""
        return replace(self, batch_size=min(4, self.batch_size))

    def without_head(self) -> Shape:
        """Return the shape with a vocabulary too small for its head to count, and long contexts."""
        name = "max_sequence_length" if self.model_type == "llada" else "max_position_embeddings"
        return replace(self, fields={**self.fields, "vocab_size": 512, name: 8192})

    def config(self) -> PretrainedConfig:
        if self.model_type in REGISTRY:
            return REGISTRY[self.model_type][0](**self.fields, pad_token_id=0, eos_token_id=2)
        return AutoConfig.for_model(self.model_type, **self.fields, **_SPECIAL)


_TINY_LLADA = {
    "d_model": 256,
    "n_heads": 4,
    "n_layers": 4,
    "mlp_hidden_size": 768,
    "vocab_size": 126_464,
}
_TINY_DREAM = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 152_064,
}
_TINY_MODERNBERT = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 50_368,
}


def draw_lengths(
    kind: str, documents: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (tokens, prompt tokens) of each document, seeded."""
    mean, sigma, shortest, longest, answer = LENGTHS[kind]
    rng = np.random.default_rng(seed)
    lengths = np.clip(
        rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, documents), shortest, longest
    ).astype(np.int64)
    prompts = np.clip((lengths * (1 - answer)).astype(np.int64), 2, lengths - 2)
    return lengths, prompts


def draw_batch(
    kind: str, order: str, batch_size: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (tokens, prompt tokens) of a typical micro-batch of 50, which stands for a long run.

    Its share of padding is nearest to that of all 50. random: documents in their own order.
    grouped: neighbours in length, chosen among the micro-batches that hold the longer half of the
    tokens, since the shortest documents are quick either way.
    """
    lengths, prompts = draw_lengths(kind, MEGA_BATCH * batch_size, seed)
    if order == "grouped":
        longest_first = np.argsort(-lengths, kind="stable")
        lengths, prompts = lengths[longest_first], prompts[longest_first]
    lengths, prompts = (
        lengths.reshape(MEGA_BATCH, batch_size),
        prompts.reshape(MEGA_BATCH, batch_size),
    )
    off = np.abs(
        lengths.mean(1) / lengths.max(1) - lengths.sum() / (batch_size * lengths.max(1).sum())
    )
    if order == "grouped":
        off = off[lengths.sum(1).cumsum() <= lengths.sum() / 2]
    return lengths[off.argmin()], prompts[off.argmin()]


_NARROW = {
    "d_model": 64,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "mlp_hidden_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_LLADA_8B = {
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126_464,
}
_DREAM_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
}
_MODERNBERT_BASE = {
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "vocab_size": 50_368,
}
_MODERNBERT_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 2624,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "vocab_size": 50_368,
}
_SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_QWEN3_06B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
# Batches of 16 for every shape, as in dLLM's BERT script for Alpaca (examples/bert/sft.py).
CPU = (
    Shape("tiny_modernbert", "modernbert", _TINY_MODERNBERT, 16),
    Shape("tiny_llada", "llada", _TINY_LLADA, 16),
    Shape("tiny_dream", "Dream", _TINY_DREAM, 16),
    Shape("modernbert_base", "modernbert", _MODERNBERT_BASE, 16),
)
CUDA = (
    Shape("llada_8b", "llada", _LLADA_8B, 8),
    Shape("dream_7b", "Dream", _DREAM_7B, 8),
    Shape("modernbert_base", "modernbert", _MODERNBERT_BASE, 48),
    Shape("modernbert_large", "modernbert", _MODERNBERT_LARGE, 48),
    Shape("smollm2_135m", "llama", _SMOLLM2_135M, 48),
    Shape("qwen3_06b", "qwen3", _QWEN3_06B, 32),
)
