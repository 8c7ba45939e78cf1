"""Configuration of an SDAR folder: Qwen3's, with the base of its rotary positions by its old name.

This file is copied into published folders (code_files.py), so that it imports transformers alone,
of version 4 or 5.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen3Config


class SDARConfig(Qwen3Config):
    """Configuration of an SDAR folder.

    transformers 5 keeps the base in `rope_parameters` alone. Engines read `rope_theta`, and take
    10,000 for one that is absent: silent garbage for Qwen3, whose base is 1,000,000.
    """

    model_type = "sdar"

    def __init__(self, **fields: Any):
        super().__init__(**fields)
        if theta := (getattr(self, "rope_parameters", None) or {}).get("rope_theta"):
            self.rope_theta = theta

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        bases = fields.get("rope_parameters") or {}
        if "rope_theta" in bases:
            fields["rope_theta"] = bases["rope_theta"]
            scaling = {name: value for name, value in bases.items() if name != "rope_theta"}
            scaled = bases.get("rope_type", "default") != "default"
            fields["rope_scaling"] = scaling if scaled else None
        return fields
