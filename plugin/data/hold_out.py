"""Rows held out for evaluation: the dataset's own eval split, else a share of the rows, prompts
kept whole.

A prompt with many answers stays on one side, so that evaluation asks what training never saw.
Where every prompt has more rows than the share allows, as in a data set of few prompts and many
answers, answers are held out instead. Keys are seeded hashes of 64 bits: their order is a random
one, the same whatever the order of the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .layouts import Example
from .seen import counted
from .turns import Turn

PROMPT_IN_EVAL = "prompt also in the eval split"
PAIR_IN_EVAL = "prompt and answer also in the eval split"

# A split's examples, as often as asked; a string instead of an Example says why the row is
# unusable.
Reader = Callable[[str], Iterable[tuple[str, Example | str]]]
Key = Callable[[Example, int], int]


@dataclass
class Shared:
    """Training rows of the last reading whose prompt, but not whose answer, is in the eval
    split.
    """

    rows: int = 0


@dataclass(frozen=True)
class HeldOut:
    """The rows of evaluation. `own_files`: the dataset has an eval split of its own."""

    keys: frozenset[int]
    own_files: bool
    by_pair: bool = False  # keys are of a prompt with its answer, else of prompts
    prompts: frozenset[int] = frozenset()  # of the eval split, where its prompts may be trained on
    note: str = ""
    shared: Shared = field(default_factory=Shared, compare=False)

    def key(self, example: Example, seed: int) -> int:
        return pair_key(example, seed) if self.by_pair else prompt_key(example, seed)


def prompt_key(example: Example, seed: int) -> int:
    """Hash everything before the last answer (of a text, all of it) to a seeded 64-bit key."""
    return _key(example.turns[:-1] if len(example.turns) > 1 else example.turns, seed)


def pair_key(example: Example, seed: int) -> int:
    """Hash a prompt with its answer to a seeded 64-bit key."""
    return _key(example.turns, seed)


def hold_out(
    read: Reader, own_files: bool, seed: int, *, share: float = 0.1, drop_prompts: bool = False
) -> HeldOut:
    """Choose the rows of evaluation: the dataset's own eval files, else at most `share` of the
    rows.

    `drop_prompts`: a training row leaves when its prompt alone is in the eval files, else only with
    its answer.
    """
    if own_files:
        prompts: set[int] = set()
        pairs: set[int] = set()
        for _, example in read("eval"):
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
            f"eval_share: {share:g} of {counted(rows, 'row')} is less than one row" if rows else ""
        )
        return HeldOut(frozenset(), False, note=note)
    if chosen := _choose(sizes, most):
        return HeldOut(chosen, False)
    chosen = _choose(_sizes(read, pair_key, seed), most)
    has = f"each of {counted(len(sizes), 'prompt')} has more than {most} of {rows} rows"
    note = f"eval_share: {has}, so answers are held out: evaluation's prompts are trained on too"
    return HeldOut(
        chosen,
        False,
        by_pair=True,
        note=note if chosen else f"eval_share: {has}, all with the same answer",
    )


def split_examples(
    read: Reader, held: HeldOut, split: str, seed: int
) -> Iterator[tuple[str, Example | str]]:
    """Read one split; nothing is in both.

    A train row that the eval files hold counts as dropped.
    """
    reason = PAIR_IN_EVAL if held.by_pair else PROMPT_IN_EVAL
    held.shared.rows = held.shared.rows if split == "eval" else 0
    for row, example in read(split if held.own_files else "train"):
        if isinstance(example, str):
            if (
                split == "train" or held.own_files
            ):  # a row without a prompt belongs to train's report
                yield row, example
            continue
        is_held = held.key(example, seed) in held.keys
        if held.own_files and split == "train":
            held.shared.rows += not is_held and prompt_key(example, seed) in held.prompts
            yield row, reason if is_held else example
        elif is_held == (split == "eval"):
            yield row, example


def _sizes(read: Reader, key: Key, seed: int) -> Counter[int]:
    """Count the rows of each key."""
    return Counter(
        key(example, seed) for _, example in read("train") if isinstance(example, Example)
    )


def _choose(sizes: Counter[int], most: int) -> frozenset[int]:
    """Take keys in their order, each that still fits, of at most `most` rows together."""
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
