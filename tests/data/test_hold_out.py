"""Held-out rows: the share, prompts kept together, and a dataset's own eval files."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from plugin.data.formats import Dropped, Example, RowResult
from plugin.data.hold_out import HeldOut, hold_out, split_examples
from plugin.data.turns import Turn

Rows = list[RowResult]


def row(number: int, prompt: str, answer: str) -> Example:
    return Example(f"t.jsonl:{number}", (Turn("user", prompt), Turn("assistant", answer)))


def text(number: int, words: str) -> Example:
    return Example(f"t.txt:{number}", (Turn("text", words),))


def reader(train: Rows, eval_: Rows | None = None) -> Callable[[str], Iterable[RowResult]]:
    return lambda split: eval_ or [] if split == "eval" else train


def split(
    read: Callable[[str], Iterable[RowResult]], held: HeldOut, seed: int
) -> tuple[Rows, Rows]:
    return tuple(list(split_examples(read, held, name, seed)) for name in ("train", "eval"))


def prompts(rows: Rows) -> set[str]:
    return {example.turns[0].text for example in rows if isinstance(example, Example)}


# 50 prompts, 4 answers each.
TWO_HUNDRED: Rows = [row(number, f"q{number // 2 % 50}", f"a{number}") for number in range(200)]


def test_hold_out_takes_a_tenth_and_keeps_prompts_together() -> None:
    read = reader(TWO_HUNDRED)
    train, evaluation = split(read, hold_out(read, False, seed=1), seed=1)
    assert len(prompts(evaluation)) == 5
    assert len(evaluation) == 20
    assert not prompts(train) & prompts(evaluation)
    assert sorted(train + evaluation, key=str) == sorted(TWO_HUNDRED, key=str)


def test_hold_out_depends_on_the_seed_alone() -> None:
    chosen = {}
    for seed in (1, 2):
        for name, rows in (("forward", TWO_HUNDRED), ("backward", TWO_HUNDRED[::-1])):
            read = reader(rows)
            chosen[seed, name] = prompts(split(read, hold_out(read, False, seed), seed)[1])
    assert chosen[1, "forward"] == chosen[1, "backward"]
    assert chosen[1, "forward"] != chosen[2, "forward"]


def test_prompt_is_everything_before_the_last_answer() -> None:
    shared = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    rows: Rows = [Example(f"r:{n}", (*shared, Turn("assistant", str(n)))) for n in range(9)]
    rows.append(Example("r:9", (Turn("user", "c"), Turn("assistant", "0"))))
    read = reader(rows)
    train, evaluation = split(read, hold_out(read, False, 3), 3)
    assert sorted([len(train), len(evaluation)]) == [1, 9], (
        "two prompts: the nine rows of the first stay together"
    )


def test_hold_out_keeps_copies_of_a_text_together() -> None:
    rows: Rows = [text(number, f"q{number % 20}") for number in range(40)]
    read = reader(rows)
    train, evaluation = split(read, hold_out(read, False, 1), 1)
    assert (len(evaluation), len(train)) == (4, 36)
    assert not prompts(train) & prompts(evaluation)


def test_hold_out_of_a_single_prompt_takes_nothing() -> None:
    read = reader([row(1, "a", "b"), row(2, "a", "c")])
    train, evaluation = split(read, hold_out(read, False, 1), 1)
    assert (len(train), len(evaluation)) == (2, 0)


def test_dropped_row_counts_in_train_alone() -> None:
    read = reader([*TWO_HUNDRED, Dropped("t.jsonl:201", "empty prompt")])
    train, evaluation = split(read, hold_out(read, False, 1), 1)
    assert Dropped("t.jsonl:201", "empty prompt") in train
    assert Dropped("t.jsonl:201", "empty prompt") not in evaluation


def grouped(sizes: list[int]) -> Rows:
    """Make prompts with these numbers of different answers."""
    groups = [(prompt, answer) for prompt, size in enumerate(sizes) for answer in range(size)]
    return [
        row(number, f"q{prompt}", f"a{answer}") for number, (prompt, answer) in enumerate(groups)
    ]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2])
@pytest.mark.parametrize(
    "sizes", [[1] * 100, [10] * 10, [91] + [1] * 9, [7] * 13 + [3] * 3, [40, 30, 20, 10], [50, 50]]
)
def test_hold_out_never_exceeds_the_share(sizes: list[int], share: float) -> None:
    read = reader(grouped(sizes))
    held = hold_out(read, False, 1, share=share)
    train, evaluation = split(read, held, 1)
    assert 1 <= len(evaluation) <= share * sum(sizes)
    assert len(train) + len(evaluation) == sum(sizes)
    assert held.by_pair or not prompts(train) & prompts(evaluation)


def test_few_prompts_with_many_answers_hold_out_answers() -> None:
    """Two prompts of fifty answers: a full prompt would be half of the rows."""
    read = reader(grouped([50, 50]))
    held = hold_out(read, False, 1)
    train, evaluation = split(read, held, 1)
    assert (len(train), len(evaluation)) == (90, 10)
    assert prompts(train) == {"q0", "q1"}
    assert not {example.turns for example in train} & {example.turns for example in evaluation}
    assert "each of 2 prompts has more than 10 of 100 rows" in held.note
    assert "answers are held out" in held.note


def test_single_prompt_with_many_answers_is_split() -> None:
    read = reader(grouped([40]))
    train, evaluation = split(read, hold_out(read, False, 1), 1)
    assert (len(train), len(evaluation)) == (36, 4)


def test_copies_of_a_pair_stay_on_one_side() -> None:
    read = reader([row(number, "q", f"a{number % 20}") for number in range(100)])
    train, evaluation = split(read, hold_out(read, False, 1), 1)
    assert len(evaluation) == 10
    assert not {example.turns for example in train} & {example.turns for example in evaluation}


def test_share_below_one_row_is_noted() -> None:
    held = hold_out(reader([row(number, f"q{number}", "a") for number in range(9)]), False, 1)
    assert not held.keys
    assert held.note == "eval_share: 0.1 of 9 rows is less than one row"
    same = hold_out(reader([row(number, "q", "a") for number in range(30)]), False, 1)
    assert not same.keys
    assert "all with the same answer" in same.note


TRAIN: Rows = [
    row(1, "a", "b"),
    row(2, "c", "d"),
    row(3, "c", "a"),
    row(4, "d", "d"),
    row(5, "c", "b"),
]
OWN: Rows = [row(1, "c", "b"), Dropped("t:2", "empty prompt")]


def test_eval_files_drop_only_their_own_rows_from_train() -> None:
    read = reader(TRAIN, OWN)
    held = hold_out(read, True, 1)
    train, evaluation = split(read, held, 1)
    assert evaluation == OWN
    assert train == [*TRAIN[:4], Dropped("t.jsonl:5", "prompt and answer also in the eval split")]
    assert held.shared.rows == 2, "rows 2 and 3 ask what evaluation asks"


def test_drop_prompts_drops_every_row_with_an_eval_prompt() -> None:
    read = reader(TRAIN, OWN)
    held = hold_out(read, True, 1, drop_prompts=True)
    train, evaluation = split(read, held, 1)
    assert evaluation == OWN
    reason = "prompt also in the eval split"
    assert train == [
        TRAIN[0],
        Dropped("t.jsonl:2", reason),
        Dropped("t.jsonl:3", reason),
        TRAIN[3],
        Dropped("t.jsonl:5", reason),
    ]
    assert held.shared.rows == 0
