"""Tokenizer trained on the data: byte-level BPE inside `[CLS] x [SEP]`.

Byte-level, so that every text survives the round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..base.redact import redact

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# Marks of a dialogue's turns, for a tokenizer that is trained before its model sees dialogues.
CHAT = ("<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{{ cls_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NORMALISERS = {
    "nfc": normalizers.NFC,
    "nfkc": normalizers.NFKC,
    "lowercase": normalizers.Lowercase,
}


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    normalise: Sequence[str] = (),
    chat: bool = False,
    multiple: int = 1,
) -> PreTrainedTokenizerBase:
    """Train a tokenizer of at most `vocab_size` tokens on `texts`.

    The size includes the special tokens and the 256 bytes. Access keys in the texts are redacted
    first: one would otherwise become a word of the vocabulary. `normalise` names NORMALISERS.
    `chat` adds the marks of CHAT and a template that writes them. Unused tokens fill the vocabulary
    up to a `multiple`, which keeps the output layer's products fast.
    """
    tokenizer = Tokenizer(models.BPE())
    if normalise:
        steps = [NORMALISERS[name]() for name in normalise]
        tokenizer.normalizer = normalizers.Sequence(steps)
    special = [*SPECIAL.values(), *(CHAT if chat else ())]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(redact, texts), trainer)
    unused = -tokenizer.get_vocab_size() % multiple
    tokenizer.add_special_tokens(
        [AddedToken(f"[unused{number}]", special=True) for number in range(unused)]
    )
    cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL
    )
    if chat:
        trained.chat_template = CHAT_TEMPLATE
    return trained
