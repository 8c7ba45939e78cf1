"""Streamed packs: full, fair, seeded, shared among ranks, and equal after save and load."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from helpers.tiny import CLS, SEP, random_documents, word_tokenizer

from plugin.assembly.corpus import Examples
from plugin.base.errors import JobError
from plugin.config.params import Params
from plugin.data.chat import ChatFormat, Encoded, Flat
from plugin.data.formats import Dropped, Example, RowResult
from plugin.data.prepare import Encoding
from plugin.data.stored.order import Order
from plugin.data.stored.source import StoredText, stored_documents
from plugin.data.stream import (
    BUFFERED,
    ROW_INDEX,
    Pack,
    Source,
    Stream,
    StreamPlan,
    StreamState,
    choose_pack,
)
from plugin.data.turns import Turn
from plugin.objectives.noise import Noise, draw_times

Rows = list[RowResult]
WORDS = [f"w{number}" for number in range(50)]


class Recording(ChatFormat):
    """A chat format that records the texts it tokenises."""

    def __init__(self) -> None:
        super().__init__(word_tokenizer(WORDS))
        self.texts: list[str] = []

    def encode_texts(self, texts: Sequence[str], flat: Flat) -> list[Encoded]:
        self.texts += texts
        return super().encode_texts(texts, flat)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(word_tokenizer(WORDS))


def text(number: int, words: int) -> Example:
    """Make row `number`; its first two words spell the number, so that all texts differ."""
    spelled = [WORDS[number // 50 % 50], WORDS[number % 50], *["w0"] * (words - 2)][:words]
    return Example(f"t:{number}", (Turn("text", " ".join(spelled)),))


def texts(count: int, *, mean: float = 3.5, spread: float = 1.0, seed: int = 0) -> Rows:
    """Make texts of lognormal lengths, median e ** mean words."""
    lengths = np.random.default_rng(seed).lognormal(mean, spread, count).astype(int) + 1
    return [text(number, int(length)) for number, length in enumerate(lengths)]


def source(rows: Rows) -> Source:
    def read(pass_: int, first: int, every: int) -> Iterator[RowResult]:
        yield from rows[first::every]

    return read


def stream(
    rows: Rows, chat: ChatFormat, *, max_length: int = 64, log: Any = lambda line: None, **plan: Any
) -> Stream:
    how = StreamPlan(**{"tokens": 4 * max_length, "packs": 1, "seed": 3, **plan})
    return Stream(
        source(rows),
        chat,
        Encoding(max_length=max_length, stage="pretrain"),
        how,
        dataset="t.jsonl",
        log=log,
    )


def take(one: Stream, steps: int) -> list[list[Pack]]:
    return [one.next_step() for _ in range(steps)]


def plain(steps: Sequence[Sequence[Pack]]) -> list[Any]:
    """Convert steps to values that can be compared."""
    return [
        [
            [(d.ids.tolist(), d.supervised.tolist(), d.prompt, slot) for d, slot in pack]
            for pack in step
        ]
        for step in steps
    ]


def flat(steps: Sequence[Sequence[Pack]]) -> list[Any]:
    return [entry for step in steps for pack in step for entry in pack]


# --- packs


@pytest.mark.parametrize(
    ("costs", "order", "budget", "wanted"),
    [
        # the oldest (4), then in order: 3 fits (3 left), 5 does not; of the rest, 2 fits best and
        # leaves 1, which 1 fills
        ([4, 1, 2, 5, 3], [4, 3, 1, 2, 0], 10, [0, 4, 2, 1]),
        # the oldest leaves no room for any other
        ([9, 2, 3], [1, 2, 0], 10, [0]),
        # exactly full, and no further
        ([5, 5, 5], [2, 1, 0], 10, [0, 2]),
        # of equals the oldest
        ([6, 8, 2, 2, 2], [1, 4, 3, 2, 0], 10, [0, 2, 3]),
    ],
)
def test_pack_worked_by_hand(
    costs: list[int], order: list[int], budget: int, wanted: list[int]
) -> None:
    assert choose_pack(costs, np.array(order), budget) == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "mean"), [(8, 4.0), (1, 4.0), (4, 5.0), (16, 3.0)])
def test_packs_are_full(chat: ChatFormat, batch_size: int, mean: float) -> None:
    max_length = 256
    one = stream(
        texts(3000, mean=mean), chat, max_length=max_length, tokens=batch_size * max_length, packs=2
    )
    used = [
        sum(document.ids.size for document, _ in pack) for step in take(one, 40) for pack in step
    ]
    assert max(used) <= batch_size * max_length
    assert sum(used) / (len(used) * batch_size * max_length) >= 0.98


class Opened:
    """The parts of a chat format that stored texts need."""

    opening, fill_id = [CLS], SEP


@pytest.mark.parametrize(("rows", "length", "least"), [(8, 1024, 0.98), (6, 8192, 0.998)])
def test_packs_of_stored_texts_are_full(rows: int, length: int, least: float) -> None:
    """Lognormal lengths, mean 255, sigma 0.8, clipped to [1, length]; the mean of 50 packs."""
    drawn = np.random.default_rng(0).lognormal(np.log(255) - 0.32, 0.8, 40_000)
    sizes = np.clip(drawn, 1, length).astype(int) - 2  # without start and end token
    sizes = np.maximum(sizes, 1).tolist()

    def read(pass_: int, first: int, every: int) -> Iterator[StoredText]:
        for number in range(first, len(sizes), every):
            yield StoredText(number, pass_, np.zeros(sizes[number], np.uint16))

    plan = StreamPlan(tokens=rows * length, packs=1, seed=1)
    how = Encoding(max_length=length, stage="pretrain")
    one = Stream(read, cast("ChatFormat", Opened()), how, plan, dataset="d")
    used = [sum(document.ids.size for document, _ in flat(take(one, 1))) for _ in range(50)]
    assert max(used) <= rows * length
    assert np.mean(used) / (rows * length) >= least


@pytest.mark.parametrize("insert_eos", [True, False])
def test_stored_text_equals_the_text_read_as_a_row(chat: ChatFormat, insert_eos: bool) -> None:
    """Ids, splits and supervision are the same; the index names the stored text."""
    rows = texts(40, mean=4.0)
    how = Encoding(max_length=32, stage="pretrain", insert_eos=insert_eos)
    stored = [
        chat.tokenizer(one.turns[0].text, add_special_tokens=False)["input_ids"]
        for one in rows
        if isinstance(one, Example)
    ]

    def read(pass_: int, first: int, every: int) -> Iterator[StoredText]:
        for number in range(first, 40, every):
            yield StoredText(number, 2 * pass_, np.array(stored[number], np.uint16))

    plan = StreamPlan(tokens=128, packs=1, seed=3)
    by_row = flat(take(Stream(source(rows), chat, how, plan, dataset="d"), 15))
    by_text = flat(take(Stream(read, chat, how, plan, dataset="d"), 15))
    by_index = {slot.index: document for document, slot in by_row if slot.pass_ == 0}
    again = {slot.index: document for document, slot in by_text if slot.pass_ == 0}
    assert len(again) > 40
    for index in by_index.keys() & again.keys():
        assert by_index[index].ids.tolist() == again[index].ids.tolist()
        assert by_index[index].ids.dtype == again[index].ids.dtype
        assert by_index[index].supervised.tolist() == again[index].supervised.tolist()
    assert {slot.pass_ for _, slot in by_text} <= {0, 2, 4}, "noise follows the visit"


def test_stored_documents_come_once_a_pass_unchanged() -> None:
    documents = random_documents(30)
    read = stored_documents(documents, Order([30], [1.0], 5))
    how = Encoding(max_length=20, stage="pretrain")
    plan = StreamPlan(tokens=60, packs=2, seed=3, rank=1, ranks=2)
    one = Stream(read, cast("ChatFormat", Opened()), how, plan, dataset="d")
    found = [entry for entry in flat(take(one, 30)) if entry[1].pass_ == 0]
    indices = [slot.index for _, slot in found]
    assert len(indices) == len(set(indices)) == 15, "half of them, for one of two ranks"
    for document, slot in found:
        assert document.ids.tolist() == documents[slot.index].ids.tolist()


def test_no_document_waits_for_long(chat: ChatFormat) -> None:
    """The buffer holds 16 packs; chance alone would keep a few documents for hundreds of them."""
    one = stream(texts(5000), chat)
    born: dict[tuple[int, int], int] = {}
    waits: list[int] = []
    for number in range(600):
        one.fill()
        for pass_, document in one.state().buffer:
            born.setdefault((pass_, document.index), number)
        waits += [number - born[slot.pass_, slot.index] for _, slot in flat([one.next_step()])]
    left = [600 - born[pass_, document.index] for pass_, document in one.state().buffer]
    assert max(waits + left) < 8 * BUFFERED
    assert np.mean(waits) < 3 * BUFFERED


def test_documents_are_parts_of_rows_and_come_once_a_pass(
    chat: ChatFormat,
) -> None:
    rows: Rows = [text(0, 5), Dropped("t:1", "empty text"), text(2, 150), text(3, 2)]
    one = stream(rows, chat, max_length=64, tokens=128)
    found = [entry for entry in flat(take(one, 60)) if entry[1].pass_ == 0]
    by_index = {document.index: document.ids for document, _ in found}
    assert len(by_index) == len(found)
    assert sorted(by_index) == [
        0,
        2 * ROW_INDEX,
        2 * ROW_INDEX + 1,
        2 * ROW_INDEX + 2,
        3 * ROW_INDEX,
    ]
    assert [by_index[2 * ROW_INDEX + part].size for part in range(3)] == [
        64,
        64,
        26,
    ]  # 150 words, [SEP], and [CLS] before each
    assert by_index[3 * ROW_INDEX].tolist() == [CLS, 5, 8, SEP]
    assert all(slot.index == document.index for document, slot in found)


def test_seed_mixes_neighbouring_rows(chat: ChatFormat) -> None:
    rows = texts(1000)
    first, again, other = (flat(take(stream(rows, chat, seed=seed), 5)) for seed in (3, 3, 4))
    assert [slot for _, slot in first] == [slot for _, slot in again]
    assert [slot for _, slot in first] != [slot for _, slot in other]
    assert np.abs(np.diff([slot.index // ROW_INDEX for _, slot in first])).mean() > 10


# --- ranks


def test_ranks_share_every_pass_row_by_row(chat: ChatFormat) -> None:
    rows = texts(103, mean=2.0)
    whole = Counter(slot.index for _, slot in flat(take(stream(rows, chat), 60)) if slot.pass_ == 0)
    for ranks in (2, 3):
        steps = [
            flat(take(stream(rows, chat, rank=rank, ranks=ranks), 60)) for rank in range(ranks)
        ]
        parts = [Counter(slot.index for _, slot in part if slot.pass_ == 0) for part in steps]
        assert sum(parts, Counter()) == whole, "an index names a document, for any number of ranks"
        for rank, part in enumerate(parts):
            assert {index // ROW_INDEX % ranks for index in part} == {rank}
        ordinals = [slot.ordinal for part in steps for _, slot in part]
        assert len(set(ordinals)) == len(ordinals)


def test_documents_of_a_rank_cover_all_times_evenly(chat: ChatFormat) -> None:
    for rank in range(13):
        slots = [
            slot
            for _, slot in flat(take(stream(texts(400, mean=2.0), chat, rank=rank, ranks=13), 1))
        ][:20]
        times = np.sort(
            draw_times(
                Noise(seed=7, mask_id=4),
                0,
                [slot.ordinal for slot in slots],
                [slot.index for slot in slots],
            )
        )
        assert np.diff([0.0, *times, 1.0]).max() < 2.5 / len(slots)


# --- state


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 3)])
@pytest.mark.parametrize("count", [40, 5000])  # many passes, and less than one
def test_stream_resumed_from_a_file_equals_the_unbroken_stream(
    chat: ChatFormat, tmp_path: Path, rank: int, ranks: int, count: int
) -> None:
    rows = texts(count)
    rows[7:7] = [Dropped("bad", "empty text")]
    how = {"rank": rank, "ranks": ranks, "packs": 3}
    whole = stream(rows, chat, **how)
    wanted = plain(take(whole, 20))
    first = stream(rows, chat, **how)
    start = plain(take(first, 7))
    (tmp_path / "stream-0.safetensors").write_bytes(first.state().as_bytes())
    second = stream(rows, chat, **how)
    second.restore(StreamState.load(tmp_path / "stream-0.safetensors"))
    assert start + plain(take(second, 13)) == wanted
    assert second.state().report == whole.state().report
    assert (second.state().pass_ > 1) == (count == 40)


def test_consumed_rows_are_not_tokenised_again(tmp_path: Path) -> None:
    rows = texts(5000)
    before, after = Recording(), Recording()
    first = stream(rows, before)
    take(first, 30)
    (tmp_path / "s").write_bytes(first.state().as_bytes())
    assert 200 < len(before.texts) < 4000
    second = stream(rows, after)
    second.restore(StreamState.load(tmp_path / "s"))
    take(second, 30)
    assert len(after.texts) > 100
    assert not set(before.texts) & set(after.texts)


def test_state_is_unchanged_by_later_steps(chat: ChatFormat) -> None:
    rows: Rows = [Dropped("bad", "empty text"), *texts(900)]
    rows[::20] = [Dropped("bad", f"reason {number % 3}") for number in range(len(rows[::20]))]
    one = stream(rows, chat)
    take(one, 3)
    state = one.state()
    report = deepcopy(state.report)
    assert sum(report.dropped.values()) > 5
    wanted = plain(take(one, 10))
    take(one, 200)
    assert (state.pass_, one.state().pass_ > 0) == (0, True)
    assert state.report == report != one.state().report
    one.restore(state)
    assert plain(take(one, 10)) == wanted
    take(one, 20)
    assert state.report == report != one.state().report


def test_state_without_documents_round_trips(chat: ChatFormat, tmp_path: Path) -> None:
    one = stream(texts(30), chat)
    (tmp_path / "s").write_bytes(one.state().as_bytes())
    assert StreamState.load(tmp_path / "s") == one.state()


def test_tokens_before_a_save_count_at_the_end_of_the_pass(chat: ChatFormat) -> None:
    """The rest of the pass has nothing to learn."""
    rows = texts(400)
    first = stream(rows, chat)
    while first.state().pass_ < 1 or not 0 < first.state().row < 400:
        take(first, 1)
    state = first.state()
    rows[state.row :] = [Dropped("bad", "empty text")] * 400
    second = stream(rows, chat)
    second.restore(state)
    take(second, 60)
    assert second.state().pass_ > 2


def test_state_of_another_rank_is_refused(chat: ChatFormat) -> None:
    state = stream(texts(30), chat, rank=0, ranks=2).state()
    with pytest.raises(JobError) as caught:
        stream(texts(30), chat).restore(state)
    assert str(caught.value).startswith("resume: expected process 0 of 2, got process 0 of 1.")


# --- what was read


def test_rows_of_the_first_pass_are_reported_once(
    chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugin.data.stream.LENGTHS", 1)
    rows: Rows = [
        text(0, 5),
        Dropped("t:1", "empty text"),
        text(2, 100),
        Dropped("t:3", "held out"),
        Dropped("t:4", "empty text"),
    ]
    lines: list[str] = []
    one = stream(rows, chat, log=lines.append)
    take(one, 50)
    report = one.state().report
    assert (report.rows, report.documents, report.dropped) == (
        5,
        3,
        {"empty text": 2, "held out": 1},
    )
    assert report.dropped_rows == {"empty text": ["t:1", "t:4"], "held out": ["t:3"]}
    assert report.tokens == 7 + 64 + 39
    assert report.supervised == report.tokens - 3
    assert report.lengths == [7]
    passes = one.state().pass_
    assert lines[0].startswith("tokenizer: texts are encoded by tokenizers, as fastokens says")
    assert [line.split(" ended")[0] for line in lines[1:]] == [
        f"data: pass {number + 1}" for number in range(passes)
    ]
    assert passes > 3


@pytest.mark.parametrize(
    ("rows", "ranks", "says"),
    [
        ([Dropped("t:1", "empty text"), Dropped("t:2", "empty text")], 1, "2 x empty text"),
        ([], 1, "which has none"),
        ([Dropped("t:1", "empty text")], 2, "which has none for process 1"),
    ],
)
def test_pass_with_nothing_to_learn_is_a_data_error(
    chat: ChatFormat, rows: Rows, ranks: int, says: str
) -> None:
    with pytest.raises(JobError) as caught:
        stream(rows, chat, rank=ranks - 1, ranks=ranks).next_step()
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (3, "dataset_name")
    assert says in str(problem)


def test_data_that_becomes_empty_stops_the_stream(chat: ChatFormat) -> None:
    rows = texts(20)
    one = stream(rows, chat)
    take(one, 1)
    rows.clear()
    with pytest.raises(JobError, match="at least one row"):
        take(one, 1000)


def test_stream_of_a_large_file_needs_little_memory(chat: ChatFormat, tmp_path: Path) -> None:
    """50 MB, of which this rank tokenises every 50th row and reads every row."""
    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": "w1 w2 w3 w4 w5 " * 680}) + "\n"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(5000):
            file.write(line)
    assert path.stat().st_size > 50e6
    params = Params.model_validate(
        {"dataset_name": str(path), "training_stage": "pretrain", "model_name": "m"}
    )
    examples = Examples(params, lambda _: None, between_rows=lambda: None)

    def rows(pass_: int, first: int, every: int) -> Iterator[RowResult]:
        return examples("train", first, every)

    plan = StreamPlan(tokens=2048, packs=4, seed=1, rank=7, ranks=50)
    one = Stream(
        rows, chat, Encoding(max_length=256, stage="pretrain"), plan, dataset="large.jsonl"
    )
    take(one, 1)
    tracemalloc.start()
    while one.state().pass_ == 0:
        take(one, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one.state().report.rows == 100
    assert peak < 16e6
