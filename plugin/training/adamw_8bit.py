"""8-bit AdamW with stochastic rounding, for bfloat16 weights.

torchao's is not used: where it is installed, every import of transformers imports it too and
prints four lines (0.18.0), and its states cannot be written as safetensors.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit

from .seeds import seed_of


class StochasticAdamW8bit(AdamW8bit):
    """bitsandbytes' 8-bit AdamW: bfloat16 weights are updated in float32 and rounded at random.

    An update is far smaller than the gap between two bfloat16 numbers (2^-8 relative). Rounding to
    nearest would lose most updates.
    """

    def __init__(self, params: Any, *, lr: float, seed: int):
        super().__init__(params, lr=lr)
        self._seed = seed

    @torch.no_grad()
    def update_step(self, group: Any, p: Any, gindex: int, pindex: int) -> None:
        if p.dtype != torch.bfloat16:
            super().update_step(group, p, gindex, pindex)
            return
        weight, gradient = p.data, p.grad
        p.data = weight.float()
        p.grad = gradient.float()
        super().update_step(group, p, gindex, pindex)
        # Seeded by parameter and step, so that a resumed run rounds as an uninterrupted one.
        seed = seed_of(self._seed, gindex, pindex, int(self.state[p]["step"]))
        generator = torch.Generator(p.device).manual_seed(seed)
        weight.copy_(round_stochastically(p.data, generator))
        p.data, p.grad = weight, gradient


def round_stochastically(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round float32 to bfloat16, up with the probability that preserves the expected value.

    Noise is added to the lower 16 bits, which are then cut off.
    """
    noise = torch.randint(
        0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    return (
        noise.add_(values.contiguous().view(torch.int32))
        .bitwise_and_(-65536)
        .view(torch.float32)
        .to(torch.bfloat16)
    )
