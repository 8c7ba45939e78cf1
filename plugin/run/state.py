"""State of a training run in a checkpoint: state.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STATE = "state.json"


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what `checkpoint` holds of its run. Raises OSError and ValueError."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
