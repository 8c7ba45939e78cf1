"""Rows held out for evaluation: the dataset's own eval split, otherwise a share of its rows.

All answers of a prompt stay on one side, so that evaluation asks prompts that training never saw.
If every prompt has more rows than the share allows (a dataset of few prompts with many answers),
answers are held out instead. Rows are chosen by seeded 64-bit hashes: their order is random, and
independent of the order of the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .formats import Dropped, Example, RowResult
from .seen import with_noun
from .turns import Turn

PROMPT_IN_EVAL = "prompt also in the eval split"
PAIR_IN_EVAL = "prompt and answer also in the eval split"

Reader = Callable[[str], Iterable[RowResult]]  # reads a split, as often as it is called
Key = Callable[[Example, int], int]


@dataclass
class Shared:
    """Training rows of the last reading that share a prompt, but no answer, with the eval split."""

    rows: int = 0


@dataclass(frozen=True)
class HeldOut:
    """Choice of the eval rows. `own_files`: the dataset has its own eval split."""

    keys: frozenset[int]
    own_files: bool
    by_pair: bool = False  # keys hash a prompt with its answer, otherwise the prompt alone
    prompts: frozenset[int] = frozenset()  # of the eval split, if training may use its prompts
    note: str = ""
    shared: Shared = field(default_factory=Shared, compare=False)

    def key(self, example: Example, seed: int) -> int:
        """Hash an example as `keys` are hashed."""
        return pair_key(example, seed) if self.by_pair else prompt_key(example, seed)


def prompt_key(example: Example, seed: int) -> int:
    """Hash everything before the last answer (all of a plain text) to a seeded 64-bit key."""
    return _key(example.turns[:-1] if len(example.turns) > 1 else example.turns, seed)


def pair_key(example: Example, seed: int) -> int:
    """Hash a prompt with its answer to a seeded 64-bit key."""
    return _key(example.turns, seed)


def hold_out(
    read: Reader, own_files: bool, seed: int, *, share: float = 0.1, drop_prompts: bool = False
) -> HeldOut:
    """Choose the eval rows: the dataset's own eval files, otherwise at most `share` of the rows.

    With `drop_prompts`, a training row is dropped if its prompt is in the eval files; without, only
    if its prompt and answer are.
    """
    if own_files:
        prompts: set[int] = set()
        pairs: set[int] = set()
        for example in read("eval"):
            if isinstance(example, Example):
                prompts.add(prompt_key(example, seed))
                pairs.add(pair_key(example, seed))
        if drop_prompts:
            return HeldOut(frozenset(prompts), True)
        return HeldOut(frozenset(pairs), True, by_pair=True, prompts=frozenset(prompts))
    sizes = _sizes(read, prompt_key, seed)
    rows = sum(sizes.values())
    most = math.floor(share * rows + 1e-9)
    if not most:
        note = (
            f"eval_share: {share:g} of {with_noun(rows, 'row')} is less than one row"
            if rows
            else ""
        )
        return HeldOut(frozenset(), False, note=note)
    if chosen := _choose(sizes, most):
        return HeldOut(chosen, False)
    chosen = _choose(_sizes(read, pair_key, seed), most)
    has = f"each of {with_noun(len(sizes), 'prompt')} has more than {most} of {rows} rows"
    so = "so answers are held out: evaluation's prompts are trained on too"
    note = f"eval_share: {has}, {so if chosen else 'all with the same answer'}"
    return HeldOut(chosen, False, by_pair=True, note=note)


def split_examples(read: Reader, held: HeldOut, split: str, seed: int) -> Iterator[RowResult]:
    """Read one split; no row is in both.

    A training row that the eval files hold is dropped.
    """
    reason = PAIR_IN_EVAL if held.by_pair else PROMPT_IN_EVAL
    held.shared.rows = held.shared.rows if split == "eval" else 0
    for example in read(split if held.own_files else "train"):
        if isinstance(example, Dropped):
            # Without eval files both splits read the same rows; the train report counts this one.
            if split == "train" or held.own_files:
                yield example
            continue
        is_held = held.key(example, seed) in held.keys
        if held.own_files and split == "train":
            held.shared.rows += not is_held and prompt_key(example, seed) in held.prompts
            yield Dropped(example.row, reason) if is_held else example
        elif is_held == (split == "eval"):
            yield example


def _sizes(read: Reader, key: Key, seed: int) -> Counter[int]:
    """Count the rows of each key."""
    return Counter(key(example, seed) for example in read("train") if isinstance(example, Example))


def _choose(sizes: Counter[int], most: int) -> frozenset[int]:
    """Take keys in ascending order while their rows fit into `most`; skip a key that does not."""
    chosen: list[int] = []
    for key in sorted(sizes):
        if sizes[key] <= most:
            chosen.append(key)
            most -= sizes[key]
    return frozenset(chosen)


def _key(turns: Iterable[Turn], seed: int) -> int:
    digest = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "big"))
    for turn in turns:
        digest.update(f"{turn.role}\0{turn.text}\0".encode())
        if turn.thought:
            digest.update(f"{turn.thought}\0".encode())
    return int.from_bytes(digest.digest(), "big")
