"""Tiny checkpoints in the published layouts, with tokenizers of the published special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plugin.data.tokenizer import train_tokenizer
from plugin.models.configuration import new_config
from plugin.models.load import build_model, fit_config
from plugin.models.publish import write_model
from plugin.run.facts import ModelFacts

# As in the published tokenizers: LLaDA's does not name its mask token, and neither has its own
# padding token.
LLADA_TOKENS = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
DREAM_TOKENS = ["<|beginoftext|>", "<|endoftext|>", "<|mask|>", "<|im_start|>", "<|im_end|>"]

# Line breaks are separate words, whatever follows them, so that a header's ids do not depend on the
# text behind it.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CONFIGS: dict[str, dict[str, object]] = {
    "bert": {
        "model_type": "modernbert",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "global_attn_every_n_layers": 1,
        "tie_word_embeddings": False,
        "initializer_range": 0.04,
    },
    "classic": {  # BERT itself, of method bert
        "model_type": "bert",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.04,
    },
    "llada": {
        "model_type": "llada",
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
        "d_model": 64,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "mlp_hidden_size": 128,
        "max_sequence_length": 128,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.04,
    },
    "dream": {
        "model_type": "Dream",
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.04,
    },
}


def published_tokenizer(
    method: str, texts: Iterable[str], vocab_size: int = 400
) -> PreTrainedTokenizerBase:
    """Return a small tokenizer with the special tokens of the method's published family."""
    if method in ("bert", "classic"):
        return train_tokenizer(texts, vocab_size)
    tokens = LLADA_TOKENS if method == "llada" else DREAM_TOKENS
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[0],
        eos_token=tokens[1],
        pad_token=tokens[1],
        clean_up_tokenization_spaces=False,
    )


def write_checkpoint(
    folder: Path, method: str, texts: Iterable[str], seed: int = 0, **changes: object
) -> Path:
    """Write a random model of the method's family with its tokenizer, in the published layout."""
    tokenizer = published_tokenizer(method, list(texts))
    config_file = folder.with_suffix(".json")
    folder.parent.mkdir(parents=True, exist_ok=True)
    config_file.write_text(
        json.dumps(CONFIGS[method] | {"vocab_size": len(tokenizer)} | changes), encoding="utf-8"
    )
    config = new_config(str(config_file))
    fit_config(config, tokenizer)
    if method not in ("bert", "classic"):
        config.mask_token_id = tokenizer.get_vocab()[
            "<|mdm_mask|>" if method == "llada" else "<|mask|>"
        ]
    torch.manual_seed(seed)
    write_model(folder, build_model(config), tokenizer, ModelFacts())
    return folder
