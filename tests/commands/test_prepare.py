"""`prepare` as a command: its output, and refusals before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.causal_lm import causal_tokenizer
from helpers.corpora import sentences, write_texts

from plugin.commands.prepare import main


def config(folder: Path, **values: object) -> str:
    data = write_texts(folder / "a.jsonl", sentences(40))
    path = folder / "prepare.yaml"
    path.write_text(json.dumps({"dataset_name": str(data), "vocab_size": 384, **values}))
    return str(path)


def test_json_is_one_object_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", config(tmp_path), "--out", str(tmp_path / "out"), "--json"]
    assert main([*words, "--stop_after", "bands"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"out": str(tmp_path / "out"), "finished": False}
    assert main(words) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["finished"]
    assert found["totals"]["documents"] + found["split"]["eval_documents"] == 40
    assert printed.err.startswith("list: 1 files of ")
    command = json.loads((tmp_path / "out" / "manifest.json").read_text())["made_by"]["command"]
    assert command == ["main.py", "prepare", *words]


def test_wrong_parameters_are_all_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config(tmp_path, bad_rows="ignore", dedup={"rows": 0})
    assert main(["--config", file, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert {line.split(": ")[1] for line in lines} == {"bad_rows", "dedup.rows"}
    assert not (tmp_path / "out").exists()


def test_the_chosen_mask_token_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    causal_tokenizer().save_pretrained(tmp_path / "base")
    file = config(tmp_path, vocab_size=0, tokenizer_name=str(tmp_path / "base"))
    assert main(["--config", file, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.count("becomes it") == 1


@pytest.mark.parametrize("name", ["none.jsonl", "a.jsonl[weight:0]", "a.tsv"])
def test_data_that_is_not_there_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config(tmp_path)
    words = ["--config", file, "--dataset_name", str(tmp_path / name)]
    assert main([*words, "--out", str(tmp_path / "out")]) in (2, 3)
    assert "error[" in (error := capsys.readouterr().err)
    assert "dataset_name" in error
