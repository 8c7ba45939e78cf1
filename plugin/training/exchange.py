"""Exchange of values between ranks, as JSON or bytes.

Never as pickles: unpickling data from a socket would run the code of anyone who reached it.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

T = TypeVar("T")


def gather_values(accelerator: Accelerator, value: T) -> list[T]:
    """Return every rank's JSON-serialisable `value`, in rank order. Collective."""
    return [json.loads(text) for text in gather_bytes(accelerator, json.dumps(value).encode())]


def gather_bytes(accelerator: Accelerator, content: bytes) -> list[bytes]:
    """Return every rank's non-empty `content`, in rank order. Collective."""
    own = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(accelerator.device)
    sizes: Any = accelerator.gather(torch.tensor([own.numel()], device=accelerator.device))
    padded: Any = accelerator.pad_across_processes(own)
    rows: Any = accelerator.gather(padded)
    rows = rows.view(accelerator.num_processes, -1).cpu().numpy()
    return [bytes(row[:size]) for row, size in zip(rows, sizes.tolist(), strict=True)]
