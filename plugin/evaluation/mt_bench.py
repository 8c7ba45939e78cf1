"""MT-bench (Zheng et al. 2023, arXiv 2306.05685): answers for a judge, in FastChat's format."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..base.files import write_whole
from ..data.sources import Row
from ..data.turns import Turn
from .figures import figure
from .kept import content_key
from .scorer import Broken, CheckedRows, How, Scored, prompt_ids, read_items, sampling_of
from .subject import Asked, Subject

FILE = "mt_bench.jsonl"


@dataclass(frozen=True)
class Question:
    row: str
    number: Any  # question_id
    turns: tuple[str, ...]


def read_mt_bench(file: str, how: How) -> CheckedRows:
    questions, count = read_items(file, how.limit, _question)
    return CheckedRows(count, partial(_score, questions, count, how))


def _question(row: Row) -> Question:
    turns, number = row.values.get("turns"), row.values.get("question_id")
    if not isinstance(turns, list) or not turns or not all(isinstance(x, str) for x in turns):  # pyright: ignore[reportUnknownVariableType]
        raise Broken("a row with a list of texts in column turns")
    if not isinstance(number, int | str):
        raise Broken("a row with a question_id")
    return Question(row.id, number, tuple(turns))  # pyright: ignore[reportUnknownArgumentType]


def _score(questions: list[Question], count: int, how: How, subject: Subject) -> Scored:
    dialogues: list[list[Turn]] = [[] for _ in questions]
    for number in range(max(len(one.turns) for one in questions)):
        asking = [place for place, one in enumerate(questions) if number < len(one.turns)]
        asked: list[Asked] = []
        for place in asking:
            dialogues[place].append(Turn("user", questions[place].turns[number]))
            ids = prompt_ids(subject, dialogues[place])
            asked.append(Asked(row=questions[place].row, ids=ids))
        for place, answer in zip(asking, subject.answers(asked), strict=True):
            dialogues[place].append(Turn("assistant", subject.chat.decode(answer.ids)))
    lines = [
        json.dumps(_line(one, turns, how), ensure_ascii=False)
        for one, turns in zip(questions, dialogues, strict=True)
    ]
    how.out.mkdir(parents=True, exist_ok=True)
    write_whole(how.out / FILE, "\n".join(lines) + "\n")
    written = sum(len(one.turns) for one in questions)
    return Scored(
        figures={"answers": figure(written, None)},
        rows=len(questions),
        of=count,
        protocol={"file": FILE, "judge": "none", **sampling_of(subject)},
    )


def _line(one: Question, dialogue: list[Turn], how: How) -> dict[str, Any]:
    texts = [turn.text for turn in dialogue if turn.role == "assistant"]
    return {
        "question_id": one.number,
        "answer_id": content_key(one.number, texts)[:22],
        "model_id": how.model,
        "choices": [{"index": 0, "turns": texts}],
        "tstamp": time.time(),
    }
