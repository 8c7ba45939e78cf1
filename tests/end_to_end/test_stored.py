"""Pretraining on a prepared folder: full runs, resumed runs, epochs, refusals, and plain packs."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.compare import differences
from faults.forks import Forks
from helpers.causal_lm import END, MARKERS, START, STOP, write_causal_lm
from helpers.corpora import run_prepare, sentences, write_texts
from helpers.scenes import Scene
from helpers.stored_folder import StoredPart, write_stored
from helpers.support import TEXT_WORDS as TEXT_WORDS
from helpers.support import TINY_CONFIG, pairs, run_main, write_rows

from plugin.base.errors import JobError
from plugin.data.tokenizer import train_tokenizer
from plugin.data.tokenizer_digest import tokenizer_digest
from plugin.models.tokenizer import load_tokenizer


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(TEXT_WORDS, k=max(1, int(rng.lognormvariate(2.5, 1)))))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    words = (text for row in pairs() for text in row.values())
    return train_tokenizer([*words, *TEXT_WORDS], TINY_CONFIG["vocab_size"])


@pytest.fixture(scope="module")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def ids(count: int, seed: int) -> list[list[int]]:
        return tokenizer(texts(count, seed), add_special_tokens=False)["input_ids"]

    parts = [
        StoredPart(ids(20, 1), ids(6, 2), weight=2.0),
        StoredPart(ids(15, 3), spec="b.jsonl"),
    ]
    return write_stored(tmp_path_factory.mktemp("prepared") / "folder", parts, tokenizer)


@pytest.fixture(scope="module")
def job(folder: Path, tiny_config: Path) -> tuple[object, ...]:
    """Return a job of a pass and a half: checkpoint 30 lies in the second pass."""
    data = ("--model_config", tiny_config, "--dataset_name", folder)
    stage = ("--training_stage", "pretrain", "--max_length", 64, "--batch_size", 2)
    length = ("--train_steps", 40, "--save_steps", 15, "--logging_steps", 7, "--eval_steps", 20)
    rest = ("--save_total_limit", 9, "--learning_rate", "3e-3", "--train_device", "cpu")
    return (*data, *stage, *length, *rest, "--fuse_model", "false")


@pytest.fixture(scope="module")
def whole(forks: Forks, job: Any, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    done = forks.run(tmp_path_factory.mktemp("whole") / "run", *job)
    assert done.code == 0, done.err
    return done


def refused(forks: Forks, path: Path, *args: object) -> str:
    done = forks.run(path, *args)
    assert done.code in (2, 3, 4), done.err
    assert not list(path.glob("checkpoint-*"))
    return done.err


def test_run_on_a_prepared_folder_learns_and_reports(whole: Scene) -> None:
    assert (whole.result["outcome"], whole.result["steps"]) == ("done", 40)
    assert whole.losses()[-1] < 0.9 * whole.losses()[0]
    evaluated = [line["eval/loss"] for line in whole.trace() if "eval/loss" in line]
    assert len(evaluated) >= 2
    assert evaluated[-1] < evaluated[0]
    log = (whole.folder / "log.txt").read_text()
    assert re.search(r"\d+ documents of the 6 texts held out are evaluated", log)
    rows = whole.result["truncation"]["train"]["rows"]
    assert rows == 2 * 20 + 15, "the first pass gives each document of weight 2 twice"
    state = json.loads((whole.folder / "checkpoint-40" / "state.json").read_text())
    assert state["pass_"] >= 1
    assert whole.json("run.json")["environment"]["data"]


@pytest.mark.parametrize("step", [15, 30])
def test_killed_run_resumes_to_the_losses_of_an_unbroken_one(
    forks: Forks, job: Any, whole: Scene, tmp_path: Path, step: int
) -> None:
    killed = forks.run(tmp_path / "killed", *job, fault=f"step:kill:{step + 3}:0")
    assert killed.code == 8, killed.err
    resumed = forks.run(killed.folder, *job, "--resume", "true")
    assert resumed.code == 0, resumed.err
    assert f"resume: resuming from step {step}" in resumed.err
    assert differences(resumed, whole) == []


def test_other_layout_is_refused_on_resume(
    forks: Forks, job: Any, whole: Scene, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(whole.folder, tmp_path / "again"))
    for change in (("--num_processes", 2), ("--batch_size", 1), ("--tokens_per_batch", 256)):
        done = forks.run(again, *job, *change, "--train_steps", 50, "--resume", "true")
        assert done.code == 2
        assert f"{str(change[0])[2:]}: expected" in done.err


def test_changed_folder_is_refused_on_resume(
    forks: Forks, job: Any, whole: Scene, folder: Path, tmp_path: Path
) -> None:
    """A folder that has another manifest is other data."""
    again = Path(shutil.copytree(whole.folder, tmp_path / "again"))
    kept = (folder / "manifest.json").read_text()
    values = json.loads(kept)
    try:
        (folder / "manifest.json").write_text(json.dumps(values | {"key": "another"}))
        done = forks.run(again, *job, "--train_steps", 50, "--resume", "true")
    finally:
        (folder / "manifest.json").write_text(kept)
    assert done.code == 2
    assert "the data this run was trained on so far" in done.err


def test_two_ranks_share_a_pass(forks: Forks, job: Any, tmp_path: Path) -> None:
    two = forks.run(tmp_path / "two", *job, "--num_processes", 2, "--batch_size", 1)
    assert two.code == 0, two.err
    assert two.result["truncation"]["train"]["rows"] == 55


def test_one_folder_serves_other_lengths_and_ends(forks: Forks, job: Any, tmp_path: Path) -> None:
    how = ("--max_length", 16, "--insert_eos", "false", "--train_steps", 4)
    done = forks.run(tmp_path / "run", *job, *how)
    assert done.code == 0, done.err


def test_epochs_count_tokens(forks: Forks, job: Any, folder: Path, tmp_path: Path) -> None:
    epochs = ("--num_train_epochs", 1.5, "--eval_strategy", "epoch")
    length = job.index("--train_steps")
    done = forks.run(tmp_path / "run", *job[:length], *job[length + 2 :], *epochs)
    assert done.code == 0, done.err
    manifest = json.loads((folder / "manifest.json").read_text())
    tokens = 0
    for shard in manifest["shards"]:
        if shard["split"] == "train":
            ends = np.load(folder / "train" / f"{shard['name']}.offsets.npy")
            for length in np.diff(ends).tolist():
                body = length + 1  # the end token
                pieces = -(-body // 63)
                tokens += (body + pieces) * (2 if shard["source"] == 0 else 1)
    assert done.result["steps"] == -(-3 * tokens // (2 * 128))
    evaluated = [line["step"] for line in done.trace() if "eval/loss" in line]
    assert -(-tokens // 128) in evaluated


def test_streaming_makes_no_difference(
    forks: Forks, job: Any, whole: Scene, tmp_path: Path
) -> None:
    done = forks.run(tmp_path / "run", *job, "--streaming", "true")
    assert done.code == 0, done.err
    log = (done.folder / "log.txt").read_text()
    assert "streaming: makes no difference" in log
    assert done.losses() == whole.losses()


# --- refusals


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--training_stage", "sft"), "dataset_name: expected training_stage pretrain"),
        (("--packing", "off"), "dataset_name: expected documents that can be packed"),
        (("--attn_implementation", "eager"), "dataset_name: expected documents that can be packed"),
        (("--tokens_per_batch", 32), "tokens_per_batch: expected at least the 64 tokens"),
    ],
)
def test_unfit_parameter_is_refused_by_name(
    forks: Forks, job: Any, tmp_path: Path, change: tuple[object, ...], says: str
) -> None:
    assert says in refused(forks, tmp_path / "run", *job, *change)


@pytest.mark.parametrize("spec", ["{}|{}", "{0}[train:5]"])
def test_prepared_folder_in_a_mixture_is_refused(
    forks: Forks, job: Any, folder: Path, pairs_file: Path, tmp_path: Path, spec: str
) -> None:
    name = spec.format(folder, pairs_file)
    err = refused(forks, tmp_path / "run", *job, "--dataset_name", name)
    assert "a folder of prepare by itself, without limits" in err


def test_another_tokenizer_is_refused_by_both_digests(
    forks: Forks, job: Any, tokenizer: Any, tmp_path: Path
) -> None:
    other = train_tokenizer(TEXT_WORDS, 280)
    other.save_pretrained(tmp_path / "other")
    err = refused(forks, tmp_path / "run", *job, "--tokenizer_name", tmp_path / "other")
    assert tokenizer_digest(other) in err
    assert tokenizer_digest(tokenizer) in err
    tokenizer.save_pretrained(tmp_path / "same")
    how = ("--tokenizer_name", tmp_path / "same", "--train_steps", 2)
    assert forks.run(tmp_path / "same run", *job, *how).code == 0


def test_model_of_another_tokenizer_is_refused(
    forks: Forks, job: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    how = ("--model_config", "", "--model_name", tiny_bert)
    assert "model_name: expected the tokenizer that" in refused(forks, tmp_path / "r", *job, *how)


def test_changed_tokenizer_files_are_refused(
    forks: Forks, job: Any, folder: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "folder"))
    train_tokenizer(TEXT_WORDS, 280).save_pretrained(own / "tokenizer")
    err = refused(forks, tmp_path / "run", *job, "--dataset_name", own)
    assert "Restore its files" in err


def test_damaged_folder_is_refused_by_its_file(
    forks: Forks, job: Any, folder: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "folder"))
    path = own / "train" / "00000.ids.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    err = refused(forks, tmp_path / "run", *job, "--dataset_name", own)
    assert "00000.ids.npy: its content was changed" in err
    (own / ".work").mkdir()
    (own / "manifest.json").unlink()
    err = refused(forks, tmp_path / "other", *job, "--dataset_name", own)
    assert "prepare did not finish here" in err


def test_small_embedding_is_refused(
    forks: Forks, job: Any, tmp_path: Path, tiny_bert: Path, tokenizer: Any
) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    for path in model.glob("*token*"):
        path.unlink()
    parts = [StoredPart([[5, 6, 7]] * 9)]
    larger = train_tokenizer([f"{a}{b}c{a}" for a in TEXT_WORDS for b in TEXT_WORDS], 400)
    assert len(larger) > 300
    own = write_stored(tmp_path / "folder", parts, larger)
    how = ("--model_config", "", "--model_name", model, "--dataset_name", own)
    err = refused(forks, tmp_path / "run", *job, *how)
    assert "tokenizer_name: expected the model's vocabulary" in err


def test_check_tries_a_prepared_folder(job: Any, tmp_path: Path) -> None:
    done = run_main("check", *job, "--run_dir", tmp_path / "run", "--json", timeout_s=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"]
    plan = found["plan"]
    assert 0.9 * 128 < plan["tokens_first_step"] <= 128
    assert plan["passes"] > 1
    assert plan["data"]["eval"]["rows"] == 6
    assert plan["preview_row"].startswith("text ")


# --- what prepare itself writes


@pytest.fixture(scope="module")
def by_prepare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("by prepare")
    data = write_texts(where / "raw.jsonl", sentences(120, words=60))
    run_prepare(data, where / "out")
    return where / "out"


def test_folder_of_prepare_is_trained_on(
    forks: Forks, job: Any, by_prepare: Path, tmp_path: Path
) -> None:
    """Its tokenizer has more tokens than the configuration's vocabulary, which is fitted to it."""
    manifest = json.loads((by_prepare / "manifest.json").read_text())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY_CONFIG | {"vocab_size": manifest["tokenizer"]["vocab_size"]}))
    how = ("--dataset_name", by_prepare, "--model_config", config, "--train_steps", 15)
    done = forks.run(tmp_path / "run", *job, *how, "--fuse_model", "true")
    assert done.code == 0, done.err
    again = load_tokenizer(str(done.folder / "fused"))
    assert tokenizer_digest(again) == manifest["tokenizer"]["digest"]


def test_prepared_folder_is_no_source_of_prepare(by_prepare: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        run_prepare(by_prepare, tmp_path / "out")
    assert "dataset_name: expected texts to prepare" in str(caught.value)


# --- plain data in packs


@pytest.fixture(scope="module")
def plain(job: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    rows = [{"text": text} for text in texts(120, 4)]
    path = write_rows(tmp_path_factory.mktemp("plain") / "texts.jsonl", rows)
    return (*job, "--dataset_name", path)


def resumed_equals_whole(forks: Forks, tmp_path: Path, *args: object) -> Scene:
    one = forks.run(tmp_path / "whole", *args)
    assert one.code == 0, one.err
    again = Path(shutil.copytree(one.folder, tmp_path / "again"))
    resumed = forks.run(again, *args, "--resume", again / "checkpoint-30")
    assert resumed.code == 0, resumed.err
    assert differences(resumed, one) == []
    return one


def test_plain_texts_make_full_steps_and_resume(forks: Forks, plain: Any, tmp_path: Path) -> None:
    one = resumed_equals_whole(forks, tmp_path, *plain)
    assert one.result["truncation"]["train"]["rows"] == 108, "12 are held out"
    assert (one.folder / "checkpoint-30" / "stream-0.safetensors").is_file()


def test_padded_texts_keep_steps_of_documents(forks: Forks, plain: Any, tmp_path: Path) -> None:
    one = resumed_equals_whole(forks, tmp_path, *plain, "--packing", "off")
    assert not list(one.folder.glob("checkpoint-*/stream-*"))
    again = tmp_path / "again"
    packed = forks.run(again, *plain, "--train_steps", 60, "--resume", "true")
    assert packed.code == 2
    assert "resume: expected a checkpoint of steps of packs, got one of steps of documents" in (
        packed.err
    )


@pytest.mark.parametrize("special", [(END, START, STOP), (END, START, STOP, *MARKERS)])
def test_a_causal_lms_own_tokenizer_prepares_text_for_its_blocks(
    forks: Forks, special: tuple[str, ...], tmp_path: Path
) -> None:
    """It names no mask token; `prepare` and training choose the same one."""
    base = write_causal_lm(tmp_path / "base", special=special)
    data = write_texts(tmp_path / "a.jsonl", texts(30, 1))
    named = {"vocab_size": 0, "tokenizer_name": str(base), "dedup": "false"}
    assert run_prepare(data, tmp_path / "prepared", **named)
    words = ("--model_name", base, "--training_method", "block", "--training_stage", "pretrain")
    words = (*words, "--dataset_name", tmp_path / "prepared", "--max_length", 64)
    done = forks.run(tmp_path / "run", *words, "--train_steps", 1, "--batch_size", 2)
    assert done.code == 0, done.err
    mask = load_tokenizer(str(tmp_path / "prepared" / "tokenizer")).mask_token_id
    fields = json.loads((done.folder / "fused" / "config.json").read_text())
    assert fields["mask_token_id"] == mask
