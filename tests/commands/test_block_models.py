"""`sample`, `chat` and `evaluate` of a block model: sizes said, answers alike, refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.block_folder import write_block_folder
from helpers.support import pairs, write_rows

from plugin.commands import evaluate, sample
from plugin.commands.chat import __main__ as chat
from plugin.config.sampler import block_by_block
from plugin.run.facts import BlockFacts

Capture = pytest.CaptureFixture[str]
REMARK = (
    "block_length 2 is not the model's block_size 4: it was trained on blocks of 4 tokens, and "
    "writes and is scored in blocks of 2."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    block = BlockFacts(size=4, shift=True)
    path = tmp_path_factory.mktemp("block") / "model"
    return write_block_folder(path, block=block, sampler=block_by_block(8, 4))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", pairs()[:3])


def words(*each: object) -> list[str]:
    return [str(one) for one in each]


def test_sample_writes_the_same_with_and_without_the_cache(
    folder: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    found: list[Any] = []
    for name, more in (
        ("exact", ("--batch_size", 1)),
        ("none", ("--cache", "none")),
        ("two", ("--block_length", 2)),
    ):
        out = tmp_path / f"{name}.jsonl"
        trace = ("--trace", tmp_path / f"{name}.trace")
        assert sample.main(words(folder, "--input", rows, "--out", out, *trace, *more)) == 0
        found.append((out.read_bytes(), (tmp_path / f"{name}.trace").read_bytes()))
        said = capsys.readouterr().err.splitlines()
        assert said == ([REMARK] if name == "two" else [])
    assert found[0] == found[1] != found[2]
    records = [json.loads(line) for line in found[0][0].splitlines()]
    assert all(0 < record["nfe"] <= 8 for record in records)


def test_chat_says_which_size_is_not_the_models(
    folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    asked = words(folder, "--prompt", "Say sun.", "--html", page)
    assert chat.main(words(*asked, "--block_length", 2)) == 0
    assert REMARK in capsys.readouterr().err
    assert page.stat().st_size > 0
    assert chat.main(asked) == 0
    assert "block_size" not in capsys.readouterr().err
    lines = tmp_path / "lines.txt"
    lines.write_text("/set block_length 2\n/infill a [[2]] b\n/set cfg 1\n/set grid true\n")
    with lines.open() as typed:
        monkeypatch.setattr("sys.stdin", typed)
        assert chat.main(words(folder)) == 2
    said = capsys.readouterr().err
    assert REMARK in said
    assert "infill: expected no infill with a block model" in said
    assert "cfg: expected no cfg with a block model" in said
    assert "set: expected one of" in said


def test_evaluate_scores_a_block_model_by_every_scorer(
    folder: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": row["response"]} for row in pairs()[:2]])
    facts = write_rows(tmp_path / "facts.jsonl", [{"name": "sun", "description": "a star"}])
    solved = write_rows(tmp_path / "gsm.jsonl", [{"question": "3 + 3?", "answer": "#### 6"}])
    asked = write_rows(tmp_path / "mt.jsonl", [{"question_id": 1, "turns": ["Say sun.", "Why?"]}])
    tasks = (f"exact={rows}", f"perplexity={texts}", f"reverse={facts}", f"gsm8k={solved}")
    tasks = (*tasks, f"mt_bench={asked}", f"loss={rows}")
    found: dict[str, Any] = {}
    for size in (4, 2):
        out = tmp_path / f"out{size}"
        command = words(folder, "--out", out, "--tasks", *tasks, "--draws", 8, "--json")
        assert evaluate.main([*command, "--block_length", str(size)]) == 0
        printed = capsys.readouterr()
        assert (REMARK in printed.err) == (size == 2)
        found[str(size)] = content = json.loads(printed.out)
        assert (content["sampler"]["block_length"], content["sampler"]["block_size"]) == (size, 4)
        assert content["likelihood"]["block_length"] == size
        assert list(content["results"]["reverse"]) == ["forward"]
        assert content["results"]["perplexity"]["perplexity"]["value"] > 1
    four, two = (found[size]["results"] for size in ("4", "2"))
    assert four["perplexity"] != two["perplexity"]
    assert four["loss"] == two["loss"], "the loss is that of training, whose blocks are the model's"


def test_evaluate_refuses_what_a_block_model_cannot_do(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    holed = write_rows(tmp_path / "holed.jsonl", [{"text": "the [[sky]] is blue"}])
    command = words(folder, "--out", tmp_path / "out", "--tasks", f"infill={holed}")
    assert evaluate.main(command) == 2
    assert "tasks: expected no infill with a block model" in capsys.readouterr().err
    assert evaluate.main([*command, "--cfg", "1", "--cache", "dual"]) == 2
    said = capsys.readouterr().err
    assert "cfg: expected no cfg with a block model" in said
    assert "cache: expected none or exact with a block model, got dual" in said
