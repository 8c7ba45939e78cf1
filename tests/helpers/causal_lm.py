"""A tiny native causal LM in a folder: transformers' own class, and a tokenizer like SmolLM2's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.tiny import tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from plugin.models.load import build_model

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MARKERS = ("<repo_name>", "<reponame>", "<file_sep>")  # tokens of SmolLM2 that no text has
TEXTS = ("How many apples are there?", "There are 3 apples and 4 pears, 7 in all.", "I see.")
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def causal_tokenizer(
    special: Sequence[str] = (END, START, STOP, *MARKERS), texts: Sequence[str] = TEXTS
) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer without a mask token whose pad is its end, like SmolLM2's."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256 + 20,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=START,
        eos_token=STOP,
        pad_token=STOP,
        unk_token=END,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = _CHATML
    return made


def write_causal_lm(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    spare: int = 0,
    special: Sequence[str] = (END, START, STOP, *MARKERS),
    **changes: Any,
) -> Path:
    """Write a causal LM of two narrow layers and its tokenizer; `spare` rows belong to no token.

    Its head is tied unless `changes` say otherwise. Its config.json is a published one's: nothing in
    it speaks of diffusion.
    """
    tokenizer = causal_tokenizer(special)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos")}
    config = tiny_config(
        family,
        **{
            "vocab_size": len(tokenizer) + spare,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
            **ids,
            **changes,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields.pop("is_causal")
    file.write_text(json.dumps(fields), encoding="utf-8")
    return folder
