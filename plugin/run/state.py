"""What a checkpoint remembers, as its state.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STATE = "state.json"


def read_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
