"""Token clock of a run of packs: the micro-batches of each step, and the tokens up to it.

Tokens are those that packs have room for: a pack of best fit is full but for a percent or two. So a
step's number alone gives its size, its place in the schedule, and the end of the run.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenClock:
    """Sizes of steps that grow from 1 micro-batch to `largest` on each device."""

    unit: int  # tokens of a micro-batch, all devices together
    largest: int
    ends: tuple[int, ...] = ()  # the step, from 0, before which size 1, 2, ... largest - 1 ends

    def micro_batches(self, step: int) -> int:
        """Return the micro-batches of step `step`, from 0, on each device."""
        return self.largest - len(self.ends) + bisect_right(self.ends, step)

    def after(self, steps: int) -> int:
        """Return the tokens of the first `steps` steps, all devices together."""
        lacking = sum(min(steps, end) for end in self.ends)
        return self.unit * (self.largest * steps - lacking)

    def steps(self, tokens: int) -> int:
        """Return the fewest steps that hold `tokens` tokens."""
        most = -(-tokens // self.unit)
        return bisect_left(range(most + 1), tokens, key=self.after)


def token_clock(*, pack: int, largest: int, devices: int, warmup: int = 0) -> TokenClock:
    """Return the clock of steps that reach `largest` packs on each device after `warmup` tokens.

    `pack`: tokens of a pack. A size is left at the first step before which its threshold is
    reached. Equal steps for each size: the recipe of ModernBERT (arXiv 2412.13663).
    """
    ends: list[int] = []
    steps = tokens = 0  # so far, tokens on each device
    for size, threshold in enumerate(thresholds(warmup, largest, devices) if warmup else (), 1):
        made = max(0, -(-(threshold - tokens) // (size * pack)))
        steps, tokens = steps + made, tokens + made * size * pack
        ends.append(steps)
    return TokenClock(pack * devices, largest, tuple(ends))


def thresholds(warmup: int, largest: int, devices: int) -> list[int]:
    """Return the tokens on each device after which steps leave size 1, 2, ... largest - 1.

    Sizes 1 to n take n (n + 1) / 2 parts of a warm-up of (largest - 1) largest / 2 parts.
    """
    parts = devices * largest * (largest - 1)
    return [-(-warmup * size * (size + 1) // parts) for size in range(1, largest)]
