"""Checks of files that a stranger may have written, made before anything is loaded from them."""

from __future__ import annotations

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

# Exceptions that the libraries raise over a broken file; their only common base is Exception.
BROKEN_FILE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
