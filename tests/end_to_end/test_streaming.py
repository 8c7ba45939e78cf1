"""Streaming pretraining: held-out texts, preparation, steps built ahead with states, full runs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.forks import Forks
from helpers.scenes import Scene
from helpers.support import TEXT_WORDS, write_rows
from helpers.tiny import CLS, PAD, alone_in, cpu, rules, tiny_model

from plugin.assembly.attention import choose_attention
from plugin.assembly.corpus import Prepared
from plugin.assembly.model import make_model
from plugin.assembly.packed import rows as stream
from plugin.assembly.packed.counts import add_up
from plugin.assembly.packed.packs import clock_of_packs
from plugin.assembly.packed.rows import RowsReading, StreamedData
from plugin.assembly.packed.steps import StreamedSteps
from plugin.assembly.rules import step_rules
from plugin.base.errors import JobError
from plugin.config.params import Params
from plugin.config.parse import parse
from plugin.data.documents import Document
from plugin.data.formats import Dropped, Example, RowResult
from plugin.data.hold_out import prompt_key
from plugin.data.steps import Slot
from plugin.data.stream import Pack, StreamState
from plugin.data.turns import Turn
from plugin.models.diffusion import DiffusionModel
from plugin.training.prefetch import Prefetcher
from plugin.training.step import Step, build_streamed_step
from plugin.worker.check import try_out


def texts(count: int, seed: int = 1) -> list[str]:
    """Return distinct texts of one to about a hundred words."""
    rng = random.Random(seed)
    return [
        f"{' '.join(rng.choices(TEXT_WORDS, k=max(1, int(rng.lognormvariate(2.5, 1)))))} {seed}/{n}"
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": text} for text in [*texts(300), "  "]]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture
def job(tiny_bert: Path, text_file: Path) -> Callable[..., Params]:
    values = {
        "model_name": str(tiny_bert),
        "dataset_name": str(text_file),
        "training_stage": "pretrain",
        "streaming": True,
    }
    values |= {"max_length": 64, "batch_size": 4, "train_steps": 10}
    return lambda **more: parse({**values, **more}).params


def prepared(params: Params) -> tuple[Prepared, list[str]]:
    lines: list[str] = []
    return stream.prepare_stream(params, lines.append), lines


def streamed(params: Params, one: Prepared, rank: int = 0, ranks: int = 1) -> StreamedSteps:
    evaluated = len(one.evaluation) > 0
    opened = RowsReading(params).open(
        one.train, one.chat, evaluated=evaluated, rank=rank, ranks=ranks
    )
    return StreamedSteps(opened, step_rules(params, one.chat), clock_of_packs(params, ranks))


def trained_rows(params: Params, one: Prepared, steps: int) -> set[int]:
    """Return the rows of the file, from 0, that the first `steps` steps train on."""
    make = streamed(params, one)
    return {
        index // 1_000_000
        for step in range(steps)
        for micro_batch in make(step).micro_batches
        for index in micro_batch.documents
    }


def is_held(row: RowResult) -> bool:
    return isinstance(row, Dropped) and row.reason == stream.HELD_OUT


def example(text: str) -> Example:
    return Example("", (Turn("text", text),))


# --- held-out texts


def test_a_hundredth_of_the_texts_is_evaluated_and_never_trained(
    job: Callable[..., Params],
) -> None:
    params = job()
    one, lines = prepared(params)
    held = {
        n for n, text in enumerate(texts(300)) if prompt_key(example(text), params.seed) % 100 == 0
    }
    assert 1 <= len(held) <= 10
    assert {int(row.split(":")[1]) - 1 for row in one.evaluation.rows} == held
    trained = trained_rows(params, one, 150)
    assert trained == set(range(300)) - held, "everything else is"
    assert any("one text in 100 is held out" in line for line in lines)
    other, _ = prepared(job(seed=7))
    assert set(other.evaluation.rows) != set(one.evaluation.rows)


def test_a_smaller_eval_share_holds_out_fewer_texts(job: Callable[..., Params]) -> None:
    params = job(eval_share=0.004)
    one, lines = prepared(params)
    held = {
        n for n, text in enumerate(texts(300)) if prompt_key(example(text), params.seed) % 250 == 0
    }
    assert {int(row.split(":")[1]) - 1 for row in one.evaluation.rows} == held
    assert not held or any("one text in 250 is held out" in line for line in lines)


def test_separate_eval_split_is_used_and_kept_from_training(
    job: Callable[..., Params], tmp_path: Path
) -> None:
    """Texts of the evaluation split are not trained on."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"text": text} for text in texts(100)]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "validation.jsonl", [*rows[5:8], {"text": "unseen"}, {"text": ""}])
    params = job(dataset_name=str(folder))
    one, _ = prepared(params)
    report = one.reports["eval"]
    assert (report.rows, report.dropped) == (5, {"empty text": 1})
    assert trained_rows(params, one, 120) == set(range(100)) - {5, 6, 7}
    assert one.reports["train"].dropped == {"prompt also in the eval split": 3}


def test_at_most_512_documents_are_evaluated(job: Callable[..., Params], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train.jsonl", [{"text": text} for text in texts(50)])
    write_rows(folder / "eval.jsonl", [{"text": text} for text in texts(700, seed=2)])
    one, _ = prepared(job(dataset_name=str(folder), max_length=32))
    assert len(one.evaluation) == one.reports["eval"].documents == 512
    assert one.reports["eval"].tokens == one.evaluation.ids.size
    assert one.reports["eval"].rows < 512, (
        "long texts are several documents, and no more rows are read than needed"
    )


@pytest.mark.parametrize(("strategy", "said"), [("steps", 1), ("no", 0)])
def test_empty_hold_out_is_logged_and_all_texts_are_trained(
    job: Callable[..., Params], tmp_path: Path, strategy: str, said: int
) -> None:
    params = job(eval_strategy=strategy)
    rows = [text for text in texts(80) if prompt_key(example(text), params.seed) % 100]
    path = write_rows(tmp_path / "few.jsonl", [{"text": text} for text in rows])
    one, lines = prepared(params.model_copy(update={"dataset_name": str(path)}))
    assert len(one.evaluation) == 0
    assert sum("nothing to hold out" in line for line in lines) == said
    assert "held out for evaluation" not in one.reports["train"].dropped


def test_a_new_tokenizer_sees_the_first_rows_alone(
    job: Callable[..., Params], tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "TOKENIZER_ROWS", 50)
    monkeypatch.setattr(stream, "EVAL_ROWS", 50)
    rows = [{"text": f"aaaa bbbb {n}"} for n in range(60)] + [
        {"text": f"zqzq zqzq {n}"} for n in range(5000)
    ]
    path = write_rows(tmp_path / "t.jsonl", rows)
    read: list[int] = []
    params = job(model_name="", model_config=str(tiny_config), dataset_name=str(path), batch_size=1)
    one = stream.prepare_stream(params, print, between_rows=lambda: read.append(1))
    words = one.tokenizer.get_vocab()
    assert any("aaa" in word for word in words)
    assert not any("zq" in word for word in words)
    assert len(read) < 1500, "of 5,060 rows"


# --- refusals


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"training_stage": "sft"}, "streaming"),
        ({"packing": "off"}, "streaming"),
        ({"num_train_epochs": 2}, "num_train_epochs"),
        ({"eval_strategy": "epoch"}, "eval_strategy"),
    ],
)
def test_unsupported_stream_option_is_refused_by_name(
    job: Callable[..., Params], values: dict[str, Any], field: str
) -> None:
    with pytest.raises(JobError) as caught:
        job(**values)
    assert [problem.field for problem in caught.value.problems] == [field]
    assert caught.value.code == 2


def test_an_attention_that_cannot_pack_is_refused(job: Callable[..., Params]) -> None:
    cpu, short = torch.device("cpu"), 3.0
    config = tiny_model("modernbert").config
    found = choose_attention(job(), config, cpu, torch.float32, short, always_packed=True)
    assert found.layout.packed, "however short its documents are"
    eager = job(attn_implementation="eager")
    with pytest.raises(JobError) as caught:
        choose_attention(eager, config, cpu, torch.float32, short, always_packed=True)
    assert caught.value.problems[0].field == "streaming"


def test_a_pack_holds_the_longest_document(job: Callable[..., Params]) -> None:
    with pytest.raises(JobError) as caught:
        prepared(job(tokens_per_batch=63))
    assert caught.value.problems[0].field == "tokens_per_batch"
    one, _ = prepared(job(tokens_per_batch=64))
    assert one.train.lengths.max() == 64


# --- steps


def pack(*lengths: int, pass_: int = 0) -> Pack:
    documents = [
        Document(np.array([CLS, *range(10, 9 + n)], np.int32), np.arange(n) > 0, 1, 40 + n)
        for n in lengths
    ]
    return tuple((one, Slot(pass_, place, one.index)) for place, one in enumerate(documents))


def test_each_pack_is_a_micro_batch_and_its_documents_stay_apart() -> None:
    step = build_streamed_step([pack(9, 5, 20), pack(12, 7)], rules(t_min=0.5))
    assert [micro_batch.documents for micro_batch in step.micro_batches] == [(49, 45, 60), (52, 47)]
    assert [micro_batch.batch.ids.numel() for micro_batch in step.micro_batches] == [34, 19]
    assert (step.tokens, step.supervised, step.lengths) == (53, 48, (9, 5, 20, 12, 7))
    assert step.count == 48, "the norm is by token"
    assert (
        step.masked
        == sum(micro_batch.batch.masked.numel() for micro_batch in step.micro_batches)
        > 10
    )
    model = tiny_model("modernbert")
    for micro_batch in step.micro_batches:
        weighted = DiffusionModel(model, PAD, "loop")(micro_batch.batch).weighted
        torch.testing.assert_close(
            weighted, torch.stack(alone_in(model, micro_batch.batch)), rtol=1e-5, atol=1e-5
        )


def test_noise_follows_seed_document_and_pass() -> None:
    def masked(step: Step) -> list[int]:
        return step.micro_batches[0].batch.masked.tolist()

    plain = masked(build_streamed_step([pack(20, 20)], rules(t_min=0.5)))
    assert masked(build_streamed_step([pack(20, 20)], rules(t_min=0.5))) == plain
    assert masked(build_streamed_step([pack(20, 20, pass_=1)], rules(t_min=0.5))) != plain
    assert masked(build_streamed_step([pack(20, 20)], rules(t_min=0.5, seed=8))) != plain


def test_complementary_copies_have_disjoint_micro_batches() -> None:
    """The two micro-batches of a pack mask disjoint tokens."""
    step = build_streamed_step([pack(9, 5), pack(12)], rules(complementary=True))
    assert [micro_batch.documents for micro_batch in step.micro_batches] == [
        (49, 45),
        (49, 45),
        (52,),
        (52,),
    ]
    for first, second in (step.micro_batches[:2], step.micro_batches[2:]):
        places = sorted([*first.batch.masked.tolist(), *second.batch.masked.tolist()])
        assert places == np.flatnonzero(first.batch.position.numpy()).tolist(), (
            "every token but the first of a document"
        )
    assert (step.tokens, step.masked) == (52, 23)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_texts_cut_in_two_still_fit(job: Callable[..., Params], batch_size: int) -> None:
    params = job(stochastic_length=1.0, batch_size=batch_size, gradient_accumulation_steps=2)
    one, _ = prepared(params)
    make = streamed(params, one)
    steps = [make(number) for number in range(20)]
    sizes = [micro_batch.batch.ids.numel() for step in steps for micro_batch in step.micro_batches]
    assert len(sizes) == 40
    assert max(sizes) <= batch_size * 64
    assert np.mean(sizes) > 0.9 * batch_size * 64
    micro_batches = [micro_batch for step in steps for micro_batch in step.micro_batches]
    assert sum(len(micro_batch.documents) for micro_batch in micro_batches) > 1.8 * sum(
        len(set(micro_batch.documents)) for micro_batch in micro_batches
    )


def same(ours: Step, theirs: Step) -> bool:
    batches = zip(
        [micro_batch.batch for micro_batch in ours.micro_batches],
        [micro_batch.batch for micro_batch in theirs.micro_batches],
        strict=True,
    )
    return all(
        a.ids.equal(b.ids) and a.masked.equal(b.masked) and a.weight.equal(b.weight)
        for a, b in batches
    )


def test_a_state_belongs_to_its_step_though_the_next_is_built(
    job: Callable[..., Params], tmp_path: Path
) -> None:
    params = job(gradient_accumulation_steps=2)
    one, _ = prepared(params)
    straight = streamed(params, one)
    wanted = [straight(number) for number in range(12)]
    steps = streamed(params, one)
    ahead = Prefetcher(steps, 12, pin=False)
    for number in range(5):
        assert same(ahead(number), wanted[number])
    ahead.close()  # waits for step 5, which is built already
    (tmp_path / "stream").write_bytes(steps.state_after(5).as_bytes())
    again = streamed(params, one)
    again.restore(5, StreamState.load(tmp_path / "stream"))
    assert all(same(again(number), wanted[number]) for number in range(5, 12))
    with pytest.raises(AssertionError, match="gives step 12 now"):
        again(3)


# --- full runs


@pytest.fixture(scope="module")
def run_of(
    forks: Forks, tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, text_file: Path
) -> Callable[[str], Scene]:
    root = tmp_path_factory.mktemp("runs")
    options = {
        "training_stage": "pretrain",
        "streaming": "true",
        "max_length": 64,
        "batch_size": 4,
        "train_steps": 24,
    }
    options |= {
        "learning_rate": "1e-2",
        "logging_steps": 1,
        "gradient_accumulation_steps": 2,
        "train_device": "cpu",
    }
    args = [word for name, value in options.items() for word in (f"--{name}", value)]
    job = ("--model_config", tiny_config, "--dataset_name", text_file, *args)
    return cache(
        lambda name: forks.run(root / name, *job, "--num_processes", {"one": 1, "two": 2}[name])
    )


@pytest.mark.parametrize("name", ["one", "two"])
def test_streamed_run_learns_and_leaves_a_full_model(
    run_of: Callable[[str], Scene], name: str
) -> None:
    run = run_of(name)
    assert run.code == 0, run.err
    assert run.result["eval_loss"] < run.result["eval_loss_first"] - 0.5
    assert (run.folder / "fused" / "model.safetensors").is_file()
    assert run.result["fuse"]["max_logit_difference"] < 1e-5
    ranks = 2 if name == "two" else 1
    assert f"24 x {ranks * 2 * 256} tokens" in (run.folder / "fused" / "README.md").read_text(
        encoding="utf-8"
    )
    state = json.loads((run.last_checkpoint() / "state.json").read_text())
    assert (state["step"], state["pass_"] >= 1) == (24, True)


@pytest.mark.parametrize("name", ["one", "two"])
def test_rows_are_reported_over_all_processes(run_of: Callable[[str], Scene], name: str) -> None:
    run = run_of(name)
    found = run.result["truncation"]
    held = found["eval"]["rows"]
    assert found["train"]["rows"] == 301
    assert found["train"]["dropped"] == {"held out for evaluation": held, "empty text": 1}
    assert found["train"]["documents"] > 300 - held
    log = (run.folder / "log.txt").read_text(encoding="utf-8").splitlines()
    assert "data: train dropped 1: empty text" in log
    assert len([line for line in log if line.startswith("data: pass 1 ended")]) == 1


def test_two_ranks_divide_by_what_they_have_together(run_of: Callable[[str], Scene]) -> None:
    """Compute the first loss from both ranks' steps and the model that a run begins with."""
    run = run_of("two")
    params = parse({**run.json("run.json")["params"], "run_dir": ""}).params
    one, _ = prepared(params)
    model = make_model(params, one.tokenizer, torch.float32)
    module = DiffusionModel(model, one.chat.pad_id, "loop")
    steps = [streamed(params, one, rank, 2)(0) for rank in range(2)]
    assert len({step.count for step in steps}) == 2, "else nothing is proved"
    with torch.no_grad():
        weighted = sum(
            float(module(micro_batch.batch).weighted.sum())
            for step in steps
            for micro_batch in step.micro_batches
        )
    first = run.trace()[1]
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(weighted / sum(step.count for step in steps), rel=1e-5)


def test_a_dry_run_says_how_little_it_read(job: Callable[..., Params]) -> None:
    notes: list[str] = []
    report = try_out(job(gradient_accumulation_steps=2), 2, notes)
    assert report["passes"] is None
    assert 0.95 * 4 * 256 < report["tokens_first_step"] <= 4 * 256
    assert report["tokens"] == 10 * report["tokens_first_step"]
    assert report["data"]["train"]["rows"] <= 301
    assert report["preview_row"] == "row 1"
    assert any(note.startswith("streaming: ") for note in notes)


def test_dry_run_counts_the_tokens_of_a_growing_step(job: Callable[..., Params]) -> None:
    """Packs of 256 tokens on two devices: sizes 1 and 2 take 2 steps each, before size 3."""
    more = {"gradient_accumulation_steps": 3, "batch_warmup_tokens": 2 * 1536}
    report = try_out(job(**more, train_tokens=10_000), 2, [])
    assert (report["steps"], report["tokens"]) == (9, 512 * (2 * 1 + 2 * 2 + 5 * 3))
    assert 0.95 * 512 < report["tokens_first_step"] <= 512


def test_counts_are_not_exchanged_by_a_single_process(job: Callable[..., Params]) -> None:
    params = job()
    one, _ = prepared(params)
    steps = streamed(params, one)
    assert add_up(cpu(), steps, 64) is steps


def test_evaluation_is_off_for_a_stream_that_holds_nothing_out(job: Callable[..., Params]) -> None:
    data = StreamedData.of(job(), print, between_rows=lambda: None)
    held = [row.row for row in data.training(0, 0, 1) if is_held(row)]
    assert held
    assert held == [row.row for row in data.evaluation()]
    everything = data.without_evaluation()
    assert not list(filter(is_held, everything.training(0, 0, 1)))
    assert not list(everything.evaluation())
