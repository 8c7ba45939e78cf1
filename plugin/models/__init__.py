"""Models by family: loading, the trained module, adapters and publishing.

Importing this package imports torch and transformers.
"""

from .load import load_model

__all__ = ["load_model"]
