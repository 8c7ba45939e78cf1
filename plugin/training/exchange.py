"""What ranks tell one another, as JSON or bytes: to unpickle what a socket brought would run the
code of whoever got at it.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

T = TypeVar("T")


def gather_values(accelerator: Accelerator, value: T) -> list[T]:
    """Return every rank's `value`, which JSON must hold, in the order of the ranks; each has to
    ask.
    """
    return [json.loads(text) for text in gather_bytes(accelerator, json.dumps(value).encode())]


def gather_bytes(accelerator: Accelerator, content: bytes) -> list[bytes]:
    """Return every rank's `content`, which is not empty, in the order of the ranks; each has to
    ask.
    """
    own = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(accelerator.device)
    sizes: Any = accelerator.gather(torch.tensor([own.numel()], device=accelerator.device))
    padded: Any = accelerator.pad_across_processes(own)
    rows: Any = accelerator.gather(padded)
    rows = rows.view(accelerator.num_processes, -1).cpu().numpy()
    return [bytes(row[:size]) for row, size in zip(rows, sizes.tolist(), strict=True)]
