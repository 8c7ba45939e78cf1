"""`probe` as a command: its object, its export, its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.support import refusal, write_rows
from helpers.tiny import tiny_model, word_tokenizer
from transformers import AutoModel

from plugin.commands.probe import main

COLOURS = ("blue", "green", "yellow", "white")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Return rows whose label is the colour that their text names."""
    rows = [
        {"text": f"It is {COLOURS[n % 4]}. {n}", "label": COLOURS[n % 4], "other": n}
        for n in range(80)
    ]
    return write_rows(tmp_path / "labelled.jsonl", rows)


def test_json_is_one_object_with_the_figures(
    tiny_bert: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder"
    assert main([str(tiny_bert), "--data", str(labelled), "--json", "--export", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["features"], found["export"]) == ("classify", "frozen", str(out))
    assert found["rows"] == {"fit": 64, "held_out": 16}
    assert found["max_length"] == 128, "the model's own positions"
    assert found["accuracy"] > 0.8 > found["majority"]
    low, high = found["ci95"]
    assert low <= found["accuracy"] <= high
    assert set(found["random_encoder"]) == {"accuracy", "ci95"}
    assert set(found["latency"]) == {"1", "32"}
    assert type(AutoModel.from_pretrained(out)).__name__ == "ModernBertModel"


def test_report_names_every_figure(
    tiny_bert: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tiny_bert), "--data", str(labelled), "--finetune", "--epochs", "1"]
    assert main(words) == 0
    printed = capsys.readouterr()
    for part in ("finetuned", "random weights", "majority", "batch 1 ", "batch 32", "95 %"):
        assert part in printed.out
    assert "data: 64 rows to fit on, 16 held out" in printed.err


def test_pairs_are_retrieved_without_a_baseline(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query": f"sky {n}", "document": f"the sky {n} is blue {n}"} for n in range(40)]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    words = [str(tiny_bert), "--data", str(data), "--baseline", "none", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["rows"]["held_out"]) == ("retrieve", 8)
    assert 0 <= found["recall_at_1"] <= found["recall_at_10"] <= 1
    assert "random_encoder" not in found
    assert "majority" not in found


@pytest.mark.parametrize(
    ("words", "code", "field"),
    [
        (("--data", "none.jsonl"), 3, "data"),
        (("--label_field", "colour"), 2, "data"),
        (("--task", "classify", "--text_field", "words"), 3, "text_field"),
        (("--task", "classify", "--text_field", "other"), 3, "text_field"),
        (("--task", "retrieve", "--finetune"), 2, "finetune"),
        (("--eval_share", "1.5"), 2, "eval_share"),
        (("--max_length", "0"), 2, "max_length"),
        (("--seed", "-1"), 2, "seed"),
        (("--seed", "99999999999999999999"), 2, "seed"),
        (("--baseline", "bert"), 2, "baseline"),
        (("--export", "."), 2, "export"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    words: tuple[str, ...],
    code: int,
    field: str,
    tiny_bert: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(tiny_bert), "--data", str(labelled), *words]) == code
    lines = capsys.readouterr().err.splitlines()
    assert refusal((code, lines, ""))[:2] == (code, field)


@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_models_with_code_of_their_own_are_refused(
    family: str, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    tiny_model(family).save_pretrained(model)
    word_tokenizer(["blue"]).save_pretrained(model)
    assert main([str(model), "--data", str(labelled)]) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error[" in line]
    assert line.startswith("error[4]: model: expected an encoder that AutoModel loads (bert, ")
    assert f"a {family} model" in line


def test_missing_model_leaves_no_export(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder"
    words = [str(tmp_path / "none"), "--data", str(labelled), "--export", str(out)]
    assert main(words) == 4
    assert "error[4]: model: " in capsys.readouterr().err
    assert not out.exists()


def test_probe_leaves_the_global_generator_alone(tiny_bert: Path, labelled: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    assert main([str(tiny_bert), "--data", str(labelled), "--finetune", "--epochs", "1"]) == 0
    assert torch.equal(torch.rand(1), wanted)
