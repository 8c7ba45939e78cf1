"""A model under evaluation: results by content, resumed after any request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import CLS, SEP

from plugin.base.errors import JobError
from plugin.evaluation.kept import Kept
from plugin.evaluation.subject import Asked, Continuation, Subject

Make = Callable[..., Subject]


class Killed(Exception):
    pass


class Dying(Kept):
    """A store whose program dies after a number of answers, in the middle of the next line."""

    def __init__(self, path: Path, after: int):
        super().__init__(path)
        self._left = after

    def put(self, key: str, value: dict[str, Any]) -> None:
        if not self._left:
            with self._path.open("ab") as file:
                file.write(b'{"key": "half')
            raise Killed
        self._left -= 1
        super().put(key, value)


def asked(*lengths: int, **how: Any) -> list[Asked]:
    rng = np.random.default_rng(3)
    return [
        Asked(
            row=f"a.jsonl:{number}",
            ids=np.array([CLS, *rng.integers(5, 20, length), SEP], np.int32),
            **how,
        )
        for number, length in enumerate(lengths, start=1)
    ]


def texts(*lengths: int, greedy: bool = False) -> list[Continuation]:
    return [
        Continuation(row=one.row, context=one.ids[:2], continuation=one.ids[2:], greedy=greedy)
        for one in asked(*lengths)
    ]


def scored(subject: Subject) -> list[Any]:
    values = [subject.scores(texts(3, 5, 2, 4, greedy=True)), subject.answers(asked(3, 5, 2, 4))]
    return [*values, subject.nfe]


@pytest.mark.parametrize("after", [0, 1, 3, 5, 7])
def test_killed_evaluation_resumes_to_the_same_numbers(
    make_subject: Make, tmp_path: Path, after: int
) -> None:
    whole = scored(make_subject(kept=Kept(tmp_path / "whole.jsonl")))
    path = tmp_path / "killed.jsonl"
    with pytest.raises(Killed):
        scored(make_subject(kept=Dying(path, after)))
    kept = Kept(path)
    computed: list[str] = []
    put = kept.put
    kept.put = lambda key, value: (computed.append(key), put(key, value))[1]  # type: ignore[method-assign]
    resumed = scored(make_subject(kept=kept))
    assert len(computed) == 8 - after
    assert resumed[1:] == whole[1:]
    for one, other in zip(resumed[0], whole[0], strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4), "other batches round otherwise"
        assert replace(one, value=0.0, stderr=0.0) == replace(other, value=0.0, stderr=0.0)


def test_other_settings_or_another_model_compute_anew(make_subject: Make, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    first = make_subject()
    first.answers(asked(3))
    first.scores(texts(3))
    lines = path.read_text().count("\n")
    make_subject().answers(asked(3))
    assert path.read_text().count("\n") == lines
    make_subject(sampler=replace(first.sampler, steps=2)).answers(asked(3))
    make_subject(digest="other").answers(asked(3))
    make_subject(likelihood=replace(first.likelihood, draws=9)).scores(texts(3))
    assert path.read_text().count("\n") == lines + 3


def test_batch_size_and_order_change_no_answer(make_subject: Make, tmp_path: Path) -> None:
    prompts = asked(3, 9, 2, 6, 1)
    one = make_subject(batch_size=1, kept=Kept(tmp_path / "one")).answers(prompts)
    all_ = make_subject(batch_size=8, kept=Kept(tmp_path / "all")).answers(prompts[::-1])[::-1]
    assert one == all_


def test_repeated_answers_differ_at_a_temperature(make_subject: Make) -> None:
    subject = make_subject(sampler=replace(make_subject().sampler, temperature=2.0))
    (one,) = asked(3)
    first, again, second = subject.answers([one, one, replace(one, repeat=1)])
    assert first == again
    assert first != second


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_rows_beyond_the_positions_are_refused_by_name(make_subject: Make, family: str) -> None:
    subject = make_subject(family)
    long = subject.positions
    with pytest.raises(JobError, match=r"tasks: .*longer ones: a\.jsonl:2\. Lower num_fewshot"):
        subject.answers(asked(3, long))
    with pytest.raises(JobError, match=rf"within the model's {long} positions, .*a\.jsonl:1"):
        subject.scores(texts(long))


def test_answer_ends_where_the_positions_do(make_subject: Make) -> None:
    subject = make_subject()
    (answer,) = subject.answers(asked(subject.positions - 2 - 3))
    assert len(answer.ids) <= 3


def test_empty_context_opens_the_document(make_subject: Make) -> None:
    subject, words = make_subject(), np.array([7, 8, 9], np.int32)
    empty = Continuation(row="1", context=words[:0], continuation=words)
    opened = Continuation(row="1", context=np.array([CLS], np.int32), continuation=words)
    one, other = subject.scores([empty, opened])
    assert (one.value, one.tokens) == (other.value, 3)


def test_first_token_is_not_scored_without_an_opening(make_subject: Make) -> None:
    subject, words = make_subject(), np.array([7, 8, 9], np.int32)
    subject.chat.start_id, before = None, subject.chat.start_id
    try:
        rest, alone = subject.scores(
            [
                Continuation(row="1", context=words[:0], continuation=words),
                Continuation(row="2", context=words[:0], continuation=words[:1]),
            ]
        )
    finally:
        subject.chat.start_id = before
    shown = Continuation(row="1", context=words[:1], continuation=words[1:])
    assert rest.tokens == 2
    assert rest.value == subject.scores([shown])[0].value
    assert (alone.value, alone.tokens, alone.nfe) == (0.0, 0, 0)
