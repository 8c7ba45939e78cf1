"""`prepare` as a whole: what stays, what goes and why, and that reruns change nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import (
    VOCABULARY,
    changed,
    contents,
    dropped_rows,
    run_prepare,
    sentences,
    write_texts,
)

from plugin.base.errors import JobError
from plugin.config.prepare_params import STEPS
from plugin.corpus import tokenizer
from plugin.data import tokenizer as training
from plugin.data.chat import ChatFormat
from plugin.data.stored.manifest import read_manifest
from plugin.data.stored.split import StoredSplit
from plugin.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """120 texts: 0 to 99 differ, 100 to 109 copy the first ten, 110 to 119 nearly do."""
    base = sentences(100, words=80)
    return [*base, *base[:10], *(changed(text, 1, seed=1) for text in base[10:20])]


@pytest.fixture(scope="module")
def data(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("raw") / "a.jsonl", texts)


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    run_prepare(data, out)
    return out


def read_split(out: Path, split: Any) -> dict[str, str]:
    """Return row -> text of the stored documents."""
    tokenizer = load_tokenizer(str(out / "tokenizer"))
    stored = StoredSplit(out, read_manifest(out), split)
    return {
        stored.row(place): str(tokenizer.decode(stored.tokens(place).tolist()))
        for place in range(len(stored))
    }


def test_every_row_is_stored_or_dropped_with_its_twin(prepared: Path, texts: list[str]) -> None:
    dropped = dropped_rows(prepared)
    wanted = {f"a.jsonl:{n + 1}": ("exact duplicate", f"a.jsonl:{n - 99}") for n in range(100, 110)}
    wanted |= {f"a.jsonl:{n + 1}": ("near duplicate", f"a.jsonl:{n - 99}") for n in range(110, 120)}
    assert dropped == wanted
    stored = read_split(prepared, "train") | read_split(prepared, "eval")
    assert stored == {f"a.jsonl:{n + 1}": texts[n] for n in range(100)}


def test_tokens_have_no_special_ids_and_their_sum_is_kept(prepared: Path, texts: list[str]) -> None:
    manifest = read_manifest(prepared)
    tokenizer = load_tokenizer(str(prepared / "tokenizer"))
    of_texts = ChatFormat(tokenizer).plain_ids(texts[:100])
    train, held = (StoredSplit(prepared, manifest, split) for split in ("train", "eval"))
    stored = np.concatenate([one.tokens(n) for one in (train, held) for n in range(len(one))])
    assert stored.size == sum(map(len, of_texts))
    assert not set(stored.tolist()) & set(tokenizer.all_special_ids)
    assert (manifest.dtype, stored.dtype) == ("uint16", np.uint16)
    assert manifest.totals.tokens == sum(int(some.sum()) for some in train.lengths())


@pytest.mark.parametrize("tasks", [3, 7])
def test_number_of_tasks_changes_no_document(
    tasks: int, data: Path, prepared: Path, tmp_path: Path
) -> None:
    run_prepare(data, tmp_path / "out", task_bytes=data.stat().st_size // tasks)
    assert len(list((tmp_path / "out" / ".work").glob("tokens-*/?????"))) == tasks
    assert dropped_rows(tmp_path / "out") == dropped_rows(prepared)
    for split in ("train", "eval"):
        assert read_split(tmp_path / "out", split) == read_split(prepared, split)


@pytest.mark.parametrize("programs", [3, 7])
def test_shares_of_several_programs_give_the_same_bytes(
    programs: int, data: Path, tmp_path: Path
) -> None:
    cut = data.stat().st_size // 5
    run_prepare(data, tmp_path / "alone", task_bytes=cut)
    for step in STEPS[1:]:
        for number in range(programs):
            share = (number, programs)
            run_prepare(data, tmp_path / "out", task_bytes=cut, share=share, stop_after=step)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_share_waits_for_tasks_of_others(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    cut = data.stat().st_size // 5
    found = run_prepare(data, tmp_path / "out", task_bytes=cut, share=(0, 2), log=said.append)
    assert found is None
    assert "sign: 2 tasks of other shares are missing; then run it again" in said
    run_prepare(data, tmp_path / "out", task_bytes=cut, share=(1, 2))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("step", STEPS[1:-1])
def test_rerun_after_a_failure_gives_the_same_bytes(
    step: str, data: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, train = np.save, training.train_tokenizer

    def fail(here: bool, path: Any) -> None:
        if here:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def full(path: Any, array: Any) -> None:
        fail(f"/{step}-" in str(path), path)
        save(path, array)

    def untrained(*given: Any, **options: Any) -> Any:
        fail(step == "tokenizer", "tokenizer.json")
        return train(*given, **options)

    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr(training, "train_tokenizer", untrained)
    with pytest.raises(JobError, match="Free space and run it again") as caught:
        run_prepare(data, tmp_path / "out")
    assert caught.value.code == 7
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    run_prepare(data, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(prepared)


def keys(out: Path) -> dict[str, str]:
    stages = json.loads((out / "manifest.json").read_text())["stages"]
    return {name: stage["key"] for name, stage in stages.items()}


def test_changed_parameter_repeats_only_the_steps_it_shapes(
    data: Path, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path / "out")
    said: list[str] = []
    run_prepare(data, tmp_path / "out", vocab_size=VOCABULARY - 64, log=said.append)
    assert not [line for line in said if line.startswith(("sign: 1 of", "bands: 25 of"))]
    before, after = keys(prepared), keys(tmp_path / "out")
    assert [name for name in before if before[name] != after[name]] == ["tokenizer", "tokens"]
    assert read_split(tmp_path / "out", "train") == read_split(prepared, "train")


def test_finished_folder_is_left_as_it_is(data: Path, tmp_path: Path) -> None:
    run_prepare(data, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    os.utime(data)  # another time, the same content
    said: list[str] = []
    assert run_prepare(data, tmp_path / "out", log=said.append)
    assert said[-1].endswith("is finished already")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before
    shutil.rmtree(tmp_path / "out" / ".work")  # which may be deleted once it is sealed
    assert run_prepare(data, tmp_path / "out", verify=True)


def test_file_changed_by_hand_is_found_by_verify(data: Path, tmp_path: Path) -> None:
    run_prepare(data, tmp_path / "out")
    file = tmp_path / "out" / "train" / "00000.ids.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(JobError, match=r"train/00000\.ids\.npy is not what was written"):
        run_prepare(data, tmp_path / "out", verify=True)


def test_no_near_copy_crosses_the_split(tmp_path: Path) -> None:
    base = sentences(400, words=80)
    near = [changed(text, 1, seed=3) for text in base]
    data = write_texts(tmp_path / "a.jsonl", [*base, *near])
    run_prepare(data, tmp_path / "out", eval_share=0.2)
    train, held = (set(read_split(tmp_path / "out", split)) for split in ("train", "eval"))
    assert not train & held
    assert len(train | held) == 400
    assert 50 < len(held) < 110
    kept = {int(row.partition(":")[2]) % 400 for row in train | held}
    assert len(kept) == 400


def test_eval_files_survive_their_copies_in_train(tmp_path: Path) -> None:
    base = sentences(60, words=80)
    write_texts(tmp_path / "data" / "train.jsonl", [*base, *base[:3]])
    write_texts(tmp_path / "data" / "test.jsonl", [base[5], changed(base[6], 1)])
    run_prepare(tmp_path / "data", tmp_path / "out", eval_share=0.2)
    assert set(read_split(tmp_path / "out", "eval")) == {"test.jsonl:1", "test.jsonl:2"}
    dropped = dropped_rows(tmp_path / "out")
    assert dropped["train.jsonl:6"] == ("exact duplicate", "test.jsonl:1")
    assert dropped["train.jsonl:7"] == ("near duplicate", "test.jsonl:2")
    assert len(dropped) == 5


def test_short_documents_match_exactly_or_not_at_all(tmp_path: Path) -> None:
    texts = ["a b c d", "a b c e", "a b c d", "", " \n ", "a b c  d", *sentences(30)]
    data = write_texts(tmp_path / "a.jsonl", texts)
    run_prepare(data, tmp_path / "out")
    assert dropped_rows(tmp_path / "out") == {
        "a.jsonl:3": ("exact duplicate", "a.jsonl:1"),
        "a.jsonl:4": ("empty", None),
        "a.jsonl:5": ("empty", None),
    }


def test_normalised_texts_are_compared(tmp_path: Path) -> None:
    texts = ["Caf\u00e9 one", "Cafe\u0301 one", "caf\u00e9 one", *sentences(30)]
    data = write_texts(tmp_path / "a.jsonl", texts)
    for values, wanted in (
        ({"normalise": "none"}, set()),
        ({"normalise": "nfc"}, {"a.jsonl:2"}),
        ({"normalise": "nfc", "lowercase": "true"}, {"a.jsonl:2", "a.jsonl:3"}),
        ({"dedup": "false"}, set()),
    ):
        out = tmp_path / str(sorted(values.items()))
        run_prepare(data, out, **values)
        assert set(dropped_rows(out)) == wanted


def test_bad_rows_stop_or_are_counted(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "a.jsonl", sentences(30))
    with data.open("ab") as file:
        file.write(b'{"text"\n\xff\xfe\n[1]\n{"text": 5}\n{"other": "x"}\n{"text": "\\ud800"}\n')
    with pytest.raises(JobError, match=r"a\.jsonl line 31"):
        run_prepare(data, tmp_path / "out")
    manifest = run_prepare(data, tmp_path / "out", bad_rows="skip")
    assert manifest
    assert manifest["sources"][0]["bad"] == {
        "not a JSON object": 2,
        "not utf-8 text": 1,
        "int in column 'text'": 1,
        "no column 'text'": 1,
        "half a surrogate pair in column 'text'": 1,
    }
    assert set(dropped_rows(tmp_path / "out")) == {f"a.jsonl:{line}" for line in range(31, 37)}


def test_rows_of_a_cut_file_keep_their_line_numbers(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in sentences(60)]
    lines[10:10] = ["", "broken", ""]
    lines += ["", "broken"]
    data = tmp_path / "a.jsonl"
    data.write_text("\n".join(lines))
    run_prepare(data, tmp_path / "out", bad_rows="skip", task_bytes=1000)
    assert set(dropped_rows(tmp_path / "out")) == {"a.jsonl:12", "a.jsonl:65"}
    stored = read_split(tmp_path / "out", "train") | read_split(tmp_path / "out", "eval")
    wanted = {n: json.loads(line)["text"] for n, line in enumerate(lines, 1) if line[:1] == "{"}
    assert {int(row.partition(":")[2]): text for row, text in stored.items()} == wanted


@pytest.mark.parametrize("change", ["gone", "longer"])
def test_source_that_changes_meanwhile_is_named(change: str, data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(data, tmp_path / "a.jsonl"))
    run_prepare(copy, tmp_path / "out", stop_after="keep")

    def before_tokens(line: str) -> None:
        if line.startswith("keep: 1 of"):
            copy.unlink() if change == "gone" else copy.write_text("{}")

    shutil.rmtree(tmp_path / "out")
    with pytest.raises(JobError, match=r"a file that can be read|changed meanwhile") as caught:
        run_prepare(copy, tmp_path / "out", log=before_tokens)
    assert caught.value.code == 3
    assert "a.jsonl" in str(caught.value)
    shutil.copy(data, copy)
    assert run_prepare(copy, tmp_path / "out")


def test_two_programs_on_one_folder_are_kept_apart(data: Path, tmp_path: Path) -> None:
    other: list[str] = []

    def meanwhile(line: str) -> None:
        if not other:
            other.append(line)
            with pytest.raises(JobError, match="in which another prepare works"):
                run_prepare(data, tmp_path / "out")
            with pytest.raises(JobError, match="in which another prepare works"):
                run_prepare(data, tmp_path / "out", share=(0, 2))

    run_prepare(data, tmp_path / "out", log=meanwhile)
    assert other


def test_folder_of_somebody_else_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(JobError, match=r"which holds thesis\.txt"):
        run_prepare(data, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_folder_inside_the_data_is_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "data" / "a.jsonl", sentences(30))
    with pytest.raises(JobError, match="outside of the data"):
        run_prepare(tmp_path / "data", tmp_path / "data" / "out")
    assert not (tmp_path / "data" / "out").exists()


def test_limit_and_weight_of_a_part_are_kept(data: Path, tmp_path: Path) -> None:
    other = write_texts(tmp_path / "b.jsonl", sentences(50, seed=9))
    spec = f"{data}[train:20,weight:3]|{other}"
    manifest = run_prepare(spec, tmp_path / "out", eval_share=0)
    assert manifest
    first, second = manifest["sources"]
    assert (first["rows"], first["weight"], second["rows"]) == (20, 3.0, 50)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    shares = [source["share_of_a_pass"] for source in report["tokens_by_source"]]
    assert shares[0] == pytest.approx(
        3 * first["tokens"] / (3 * first["tokens"] + second["tokens"])
    )


def test_sample_of_the_tokenizer_follows_the_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "SAMPLE", 12_000)
    drawn: list[tokenizer.TextSample] = []
    real = tokenizer.draw_sample
    monkeypatch.setattr(
        tokenizer, "draw_sample", lambda *given: drawn.append(real(*given)) or drawn[-1]
    )
    words = [f"{text} " + "other " * 20 for text in sentences(200, seed=9)]
    other = write_texts(tmp_path / "b.jsonl", words)
    run_prepare(f"{data}[weight:4]|{other}", tmp_path / "out", dedup="false", eval_share=0)
    (sample,) = drawn
    size = sum(len(text) for text in sample.texts)
    of_other = sum(len(text) for text in sample.texts if "other" in text)
    heavy = 4 * data.stat().st_size
    assert 6_000 < size < 18_000
    assert of_other / size == pytest.approx(1 - heavy / (heavy + other.stat().st_size), abs=0.15)


def test_words_without_spaces_are_noticed(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + place * 37 % 5000) for place in range(300))
    data = write_texts(tmp_path / "a.jsonl", [text[n:] for n in range(0, 100, 7)])
    said: list[str] = []
    run_prepare(data, tmp_path / "out", log=said.append, eval_share=0)
    assert any("character suits a language without spaces" in line for line in said)
    values = {"dedup": {"unit": "character", "ngram": 5}}
    run_prepare(data, tmp_path / "characters", log=said.append, eval_share=0, **values)
    assert dropped_rows(tmp_path / "characters")


def test_named_tokenizer_gives_the_tokens_of_its_own_corpus(
    data: Path, prepared: Path, tmp_path: Path
) -> None:
    named = {"vocab_size": 0, "tokenizer_name": str(prepared / "tokenizer")}
    manifest = run_prepare(data, tmp_path / "out", **named)
    assert manifest
    assert manifest["tokenizer"]["digest"] == read_manifest(prepared).tokenizer.digest
    mine, theirs = contents(tmp_path / "out"), contents(prepared)
    # the configuration of a tokenizer that was loaded holds more than that of a trained one
    other = [name for name in theirs if mine[name] != theirs[name]]
    assert other == ["tokenizer/tokenizer_config.json"]


def test_compared_tokenizer_is_measured_on_held_out_text(
    data: Path, prepared: Path, tmp_path: Path
) -> None:
    base = str(prepared / "tokenizer")
    manifest = run_prepare(data, tmp_path / "out", vocab_size=384, compare_tokenizer=base)
    assert manifest
    mine, theirs = manifest["tokenizer"]["compared"]
    assert (mine["vocab_size"], theirs["vocab_size"]) == (384, VOCABULARY)
    assert mine["bytes_per_token"] < theirs["bytes_per_token"]
    assert mine["tokens_per_word"] > theirs["tokens_per_word"] > 1
