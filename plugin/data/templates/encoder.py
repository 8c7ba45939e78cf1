"""Chat template for a tokenizer that has none: `[CLS] turn [SEP] turn [SEP] ...`.

It needs no new tokens, and the end token also ends the turn that generation waits for. Saved with
the model, it shows any other program the prompts that the model was trained on.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def ends_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Name the special tokens that open and end a sequence: (cls or bos, sep or eos).

    A name is empty if the tokenizer has neither. If it has both kinds, an encoder's tokenizer
    writes cls and sep around every text; any other tokenizer, LLaDA's for one, does not use its
    cls, and bos opens the sequence.
    """
    written = tokenizer("a")["input_ids"]
    encoder = (
        bool(written)
        and tokenizer.cls_token_id is not None
        and written[0] == tokenizer.cls_token_id
    )
    order = (("cls", "bos"), ("sep", "eos")) if encoder else (("bos", "cls"), ("eos", "sep"))
    start, end = (next((name for name in names if _has(tokenizer, name)), "") for names in order)
    return start, end


def encoder_template(start: str, end: str) -> str:
    """Return the template with the special tokens that ends_of named."""
    opening = f"{{{{ {start}_token }}}}" if start else ""
    turn = f"{{{{ message['content'] }}}}{{{{ {end}_token }}}}"
    return f"{opening}{{% for message in messages %}}{turn}{{% endfor %}}"


def _has(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    return isinstance(getattr(tokenizer, f"{name}_token_id"), int)
