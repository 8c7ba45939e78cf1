"""Offline scorers: right answers counted by hand, files checked row by row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.support import read_lines, write_rows
from helpers.tiny import CLS, MASK, SEP

from plugin.base.errors import JobError
from plugin.commands.evaluate_arguments import SCORERS as NAMES
from plugin.evaluation import exact, gsm8k, infill, mt_bench, perplexity, reverse
from plugin.evaluation.figures import figure, mean, ratio, share
from plugin.evaluation.gsm8k import final_number, last_number
from plugin.evaluation.infill import Holed, holed_ids
from plugin.evaluation.perplexity import windows
from plugin.evaluation.scorer import How
from plugin.evaluation.scorers import SCORERS
from plugin.evaluation.subject import Subject
from plugin.sampling.likelihood import LikelihoodSettings

Scripted = Callable[[Callable[[str], str]], Any]
Make = Callable[..., Subject]


def test_options_name_the_scorers_that_there_are() -> None:
    assert set(NAMES) == {*SCORERS, "loss"}


# --- figures


def test_mean_and_its_standard_error() -> None:
    found = mean([1.0, 2.0, 3.0, 6.0])
    assert (found["value"], found["n"]) == (3.0, 4)
    assert found["stderr"] == pytest.approx(math.sqrt(14 / 3 / 4))
    assert mean([2.0])["stderr"] is None


def test_share_of_nothing_right_has_an_interval() -> None:
    found = share([False] * 9)
    assert (found["value"], found["stderr"]) == (0.0, 0.0)
    assert found["ci95"] == pytest.approx([0.0, 0.2991], abs=1e-3)
    for count in range(1, 60):  # without the dust of rounding, which a table shows as 1.4e-17
        assert share([False] * count)["ci95"][0] == 0.0
        assert share([True] * count)["ci95"][1] == 1.0


def test_interval_of_a_share_stays_inside_its_bounds() -> None:
    assert figure(0.9, 0.2, least=0.0, most=1.0)["ci95"] == [pytest.approx(0.508), 1.0]
    assert figure(0.1, 0.2, least=0.0)["ci95"] == [0.0, pytest.approx(0.492)]
    assert figure(0.1, 0.2)["ci95"] == [pytest.approx(-0.292), pytest.approx(0.492)]
    assert figure(0.1, 0.0)["ci95"] is None, "rows that do not differ say nothing of others"


def test_ratio_of_equal_rows_has_no_spread() -> None:
    assert ratio([(2.0, 1.0), (4.0, 2.0)]) == (2.0, 0.0)
    assert ratio([(1.0, 1.0), (5.0, 2.0)])[1] == pytest.approx(math.sqrt(2) / 3 * math.sqrt(2))


# --- gsm8k


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so #### 72", "72"),
        ("#### 1 then #### 1,234.50.", "1234.50"),
        ("####-5", "-5"),
        ("#### $7", "7"),
        ("it is 72", None),
        ("#### seven", None),
    ],
)
def test_final_number_is_the_last_marked_one(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_last_number_stands_anywhere() -> None:
    assert last_number("first 3, then $1,200.") == Decimal(1200)
    assert last_number("none") is None


def sums(path: Path, count: int) -> Path:
    rows = [
        {"question": f"what is {n}", "answer": f"it is {n} #### {n}"} for n in range(1, count + 1)
    ]
    return write_rows(path, rows)


def test_gsm8k_counts_numerically_equal_answers(tmp_path: Path, scripted: Scripted) -> None:
    subject = scripted(lambda text: "# # # # 1" if "1" in text else "the answer is 2")
    found = gsm8k.read_gsm8k(str(sums(tmp_path / "g.jsonl", 4)), How(limit=3)).score(subject)
    assert found.figures["exact_match"]["value"] == pytest.approx(0.0), "words lie apart"
    assert found.figures["flexible"]["value"] == pytest.approx(2 / 3)
    assert (found.rows, found.of, found.protocol["shots"]) == (3, 4, 0)
    wanted = {"template", "filter", "steps", "block_length", "threshold", "max_new_tokens", "ends"}
    assert wanted <= found.protocol.keys()


def test_gsm8k_shows_the_first_rows_and_leaves_them_out(tmp_path: Path, scripted: Scripted) -> None:
    subject = scripted(lambda text: "3")
    file = str(sums(tmp_path / "g.jsonl", 5))
    found = gsm8k.read_gsm8k(file, How(num_fewshot=2, limit=2)).score(subject)
    assert (found.rows, found.of, found.protocol["shots"]) == (2, 3, 2)
    assert all("is 1" in text and "is 2" in text for text in subject.seen)
    assert ["is 3" in text for text in subject.seen] == [True, False]
    assert found.figures["flexible"]["value"] == 0.5
    other = str(sums(tmp_path / "shots.jsonl", 1))
    found = gsm8k.read_gsm8k(file, How(num_fewshot=1, shots=other, template=False)).score(subject)
    assert (found.rows, found.protocol["template"]) == (5, "Question:/Answer:")
    assert all(text.count("question :") == 2 for text in subject.seen[2:])
    with pytest.raises(JobError, match="rows to score"):
        gsm8k.read_gsm8k(file, How(num_fewshot=5))


# --- exact, reverse, infill, mt_bench


def test_exact_reads_any_format_and_compares_the_whole_text(
    tmp_path: Path, scripted: Scripted
) -> None:
    rows: list[dict[str, object]] = [
        {"instruction": "say one", "output": "One"},
        {"messages": [{"role": "user", "content": "say 2"}, {"role": "assistant", "content": "2"}]},
    ]
    file = write_rows(tmp_path / "e.jsonl", rows)
    found = exact.read_exact(str(file), How()).score(scripted(lambda text: "one"))
    assert found.figures["exact_match"]["value"] == 0.5
    broken = write_rows(tmp_path / "b.jsonl", [*rows, {"instruction": "say", "output": ""}])
    with pytest.raises(JobError, match=r"tasks: .*empty response.*b\.jsonl:3"):
        exact.read_exact(str(broken), How())
    plain = write_rows(tmp_path / "p.jsonl", [{"text": "say one"}])
    with pytest.raises(JobError, match="a row with a prompt and its response"):
        exact.read_exact(str(plain), How())


@pytest.mark.parametrize("template", [True, False])
def test_reverse_asks_in_both_directions(
    tmp_path: Path, scripted: Scripted, template: bool
) -> None:
    rows = [
        {"name": "ada one", "description": "the sky is blue"},
        {"name": "bob", "description": "the sky is red"},
    ]
    file = write_rows(tmp_path / "r.jsonl", rows)

    def answer(text: str) -> str:
        if "░" in text:
            return "ada one" if "blue" in text else "ada"
        return "the sky is blue . 3" if "ada" in text else "the sky is blue"

    subject = scripted(answer)
    found = reverse.read_reverse(str(file), How(template=template)).score(subject)
    assert {name: one["value"] for name, one in found.figures.items()} == {
        "forward": 0.5,
        "reverse": 0.5,
    }
    forward, backward = subject.seen[:2], subject.seen[2:]
    assert not any("sky" in text for text in forward)
    assert [text.count("░") for text in backward] == [2, 1], "a mask for each token of the name"
    assert not any("ada" in text or "bob" in text for text in backward)


def test_holes_are_the_tokens_that_a_mark_touches(make_subject: Make) -> None:
    subject = make_subject()
    ids, holes = holed_ids(subject, Holed("1", "the sky is blue", ((4, 7), (11, 15))))
    assert ids.tolist()[0] == CLS
    assert ids.tolist()[-1] == SEP
    assert holes.tolist() == [2, 4]
    with pytest.raises(JobError, match="spells no special token"):
        holed_ids(subject, Holed("1", "the [MASK] is blue", ((4, 7),)))


def test_infill_counts_texts_and_tokens(tmp_path: Path, scripted: Scripted) -> None:
    rows = [{"text": "the [[sky]] is [[blue]]"}, {"text": "say [[one]]"}]
    file = write_rows(tmp_path / "i.jsonl", rows)
    subject = scripted(lambda text: "sky red" if "the" in text else "one")
    found = infill.read_infill(str(file), How()).score(subject)
    assert found.figures["exact_match"]["value"] == 0.5
    assert found.figures["token_accuracy"]["value"] == pytest.approx(2 / 3)
    broken = write_rows(tmp_path / "b.jsonl", [{"text": "no hole"}])
    with pytest.raises(JobError, match=r"a text with a hole, .*b\.jsonl:1"):
        infill.read_infill(str(broken), How())


def test_infilled_text_keeps_what_surrounds_it(make_subject: Make, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "i.jsonl", [{"text": "the [[sky is]] blue"}])
    found = infill.read_infill(str(file), How()).score(make_subject())
    assert found.figures["token_accuracy"]["n"] == 2


def test_mt_bench_writes_answers_of_every_turn(tmp_path: Path, scripted: Scripted) -> None:
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["say one", "say 2"]},
        {"question_id": 82, "turns": ["what is 3"]},
    ]
    file = write_rows(tmp_path / "q.jsonl", rows)
    subject = scripted(lambda text: "2" if "2" in text else "one")
    how = How(out=tmp_path / "out", model="run/fused")
    found = mt_bench.read_mt_bench(str(file), how).score(subject)
    assert found.figures["answers"] == {"value": 3, "stderr": None, "ci95": None}
    first, second = read_lines(tmp_path / "out" / "mt_bench.jsonl")
    assert first["choices"] == [{"index": 0, "turns": ["one", "2"]}]
    assert second["choices"] == [{"index": 0, "turns": ["one"]}]
    assert set(first) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert (first["question_id"], first["model_id"]) == (81, "run/fused")
    assert first["answer_id"] != second["answer_id"]
    assert subject.seen[2].count("say one"), "the second turn sees the first and its answer"
    broken = write_rows(
        tmp_path / "b.jsonl", [{"question_id": 1, "turns": "say"}, {"turns": ["a"]}]
    )
    with pytest.raises(JobError) as refused:
        mt_bench.read_mt_bench(str(broken), how)
    assert len(refused.value.problems) == 2


# --- perplexity


def test_windows_hold_each_token_once() -> None:
    ids = np.arange(10, 21, dtype=np.int32)
    found = windows(ids, CLS, 6)
    assert [context.tolist() for context, _ in found] == [[CLS], [CLS, 14], [CLS, 18]]
    assert np.concatenate([rest for _, rest in found]).tolist() == ids.tolist()
    assert all(context.size + rest.size <= 6 for context, rest in found)
    assert windows(ids, None, 20)[0][0].size == 0


def test_perplexity_by_year_equals_full_logits(make_subject: Make, tmp_path: Path) -> None:
    rows = [
        {"text": "the sky is blue", "date": "2021-03-04"},
        {"text": "say one 2 3", "date": "2021"},
        {"text": "what is red", "date": "2022-01-01T00:00:00"},
    ]
    file = write_rows(tmp_path / "p.jsonl", rows)
    subject = make_subject(likelihood=LikelihoodSettings(estimator="chain_rule"))
    found = perplexity.read_perplexity(str(file), How()).score(subject)
    assert list(found.figures) == ["perplexity/2021", "perplexity/2022"]
    nats = []
    for row in rows[:2]:
        ids = [CLS, *subject.chat.plain_ids([str(row["text"])])[0]]
        for place in range(1, len(ids)):
            noisy = torch.tensor([[*ids[:place], *[MASK] * (len(ids) - place)]])
            with torch.no_grad():
                logits = subject.model(input_ids=noisy).logits[0, place]
            logits[MASK] = -torch.inf
            nats.append(-logits.log_softmax(-1)[ids[place]].item())
    one = found.figures["perplexity/2021"]
    assert one["value"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    assert (one["tokens"], one["n"]) == (len(nats), 2)
    low, high = one["ci95"]
    assert low < one["value"] < high
    one = found.figures["perplexity/2022"]  # a row, and nothing is drawn
    assert (one["stderr"], one["ci95"], one["n"]) == (None, None, 1)


@pytest.mark.parametrize(
    ("rows", "slices", "names"),
    [
        ([{"text": "the sky"}, {"text": "is blue"}], "year", ["perplexity"]),
        ([{"text": "the sky", "date": "2021-05"}], "month", ["perplexity/2021-05"]),
    ],
)
def test_perplexity_slices(
    make_subject: Make, tmp_path: Path, rows: list[dict[str, str]], slices: str, names: list[str]
) -> None:
    file = write_rows(tmp_path / "p.jsonl", rows)
    found = perplexity.read_perplexity(str(file), How(slices=slices)).score(make_subject())
    assert list(found.figures) == names
    assert found.figures[names[0]]["stderr"] is not None


def test_a_row_by_one_draw_has_no_interval(make_subject: Make, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "p.jsonl", [{"text": "the sky is blue"}])
    subject = make_subject(likelihood=LikelihoodSettings(draws=1))
    one = perplexity.read_perplexity(str(file), How()).score(subject).figures["perplexity"]
    assert (one["stderr"], one["ci95"]) == (None, None)


def test_broken_dates_are_refused_by_row(tmp_path: Path) -> None:
    rows = [{"text": "the sky", "date": "2021"}, {"text": "is", "date": "May"}]
    file = write_rows(tmp_path / "p.jsonl", rows)
    with pytest.raises(JobError, match=r"a date that begins with YYYY, got p\.jsonl:2"):
        perplexity.read_perplexity(str(file), How())
    with pytest.raises(JobError, match=r"YYYY-MM, got p\.jsonl:1"):
        perplexity.read_perplexity(str(file), How(slices="month"))


def test_broken_line_and_empty_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"text": "the sky"}) + '\n{"text": "half\n')
    with pytest.raises(JobError, match=r"tasks: .*p\.jsonl"):
        perplexity.read_perplexity(str(file), How())
    file.write_text("")
    with pytest.raises(JobError, match="rows to score"):
        perplexity.read_perplexity(str(file), How())
