"""The prompt layout of a tokenizer that has none, as a chat template: `[CLS] turn [SEP] turn [SEP]
...`.

It needs no new tokens, and the end token is the end of a turn that generation waits for. Saved with
the model, it tells any other program how the model was trained to be asked.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def ends_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Names of the special tokens that open and end a sequence: (cls or bos, sep or eos); empty
    where there is neither.

    A tokenizer may have both kinds. An encoder's writes its cls and sep around every text; of any
    other one, LLaDA's among them, the cls belongs to nothing, and bos opens.
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
    """Return the encoder's layout for the special tokens that ends_of named."""
    opening = f"{{{{ {start}_token }}}}" if start else ""
    return f"{opening}{{% for message in messages %}}{{{{ message['content'] }}}}{{{{ {end}_token }}}}{{% endfor %}}"


def _has(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    return isinstance(getattr(tokenizer, f"{name}_token_id"), int)
