"""Models: loading by family, the face training uses, the gathered head, fusing."""

from .load import load_model, load_tokenizer, new_model

__all__ = ["load_model", "load_tokenizer", "new_model"]
