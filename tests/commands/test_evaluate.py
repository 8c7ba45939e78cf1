"""`evaluate` as a command: its object, its files, its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.support import pairs, write_rows
from safetensors.torch import load_file, save_file

from plugin.commands.evaluate import main
from plugin.evaluation.kept import Kept
from plugin.run.evaluation import Evaluation

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", pairs()[:4])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    found = [{"text": row["response"], "date": f"202{n}"} for n, row in enumerate(pairs()[:2])]
    return write_rows(tmp_path / "texts.jsonl", found)


def run(model: Path, out: Path, *words: object) -> int:
    fast = ("--draws", 4, "--max_new_tokens", 8, "--block_length", 4)
    return main([str(word) for word in (model, "--out", out, *words, *fast)])


def test_json_is_one_object_equal_to_the_file(
    tiny_bert: Path, rows: Path, texts: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, tasks = tmp_path / "out", (f"exact={rows}", f"perplexity={texts}", f"loss={rows}")
    assert run(tiny_bert, out, "--tasks", *tasks, "--json", "--limit", 3) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert Path(found.pop("path")) == out / "evaluation.json"
    saved = json.loads((out / "evaluation.json").read_text())
    assert found == saved
    assert Evaluation.read(saved).nfe == saved["nfe"] > 0
    assert list(saved["results"]) == ["exact", "perplexity", "loss"]
    assert set(saved["results"]["perplexity"]) == {"perplexity/2020", "perplexity/2021"}
    for figures in saved["results"].values():
        assert all({"value", "stderr"} <= one.keys() for one in figures.values())
    assert {name: (one["rows"], one["of"]) for name, one in saved["tasks"].items()} == {
        "exact": (3, 4),
        "perplexity": (2, 2),
        "loss": (3, 4),
    }
    assert saved["sampler"]["block_length"] == saved["sampler"]["steps"] == 4
    assert (saved["likelihood"]["draws"], saved["likelihood"]["estimator"]) == (4, "monte_carlo")


def test_interrupted_evaluation_resumes_to_the_same_file(
    tiny_bert: Path,
    rows: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    tasks = ("--tasks", f"exact={rows}", f"perplexity={texts}", "--json")
    assert run(tiny_bert, tmp_path / "whole", *tasks) == 0
    put, left = Kept.put, [3]

    def dying(self: Kept, key: str, value: dict[str, object]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        put(self, key, value)

    monkeypatch.setattr(Kept, "put", dying)
    capsys.readouterr()
    assert run(tiny_bert, tmp_path / "out", *tasks) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"stopped: finished requests are kept in {tmp_path / 'out' / 'evaluation'}; "
        "the same command resumes"
    )
    assert not (tmp_path / "out" / "evaluation.json").exists()
    monkeypatch.setattr(Kept, "put", put)
    requests = tmp_path / "out" / "evaluation" / "requests.jsonl"
    requests.write_bytes(requests.read_bytes() + b'{"key": "cut o')
    assert run(tiny_bert, tmp_path / "out", *tasks) == 0
    whole, out = (
        json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "out")
    )
    assert out["nfe"] == whole["nfe"]
    assert out["results"]["exact"] == whole["results"]["exact"]
    for metric, one in whole["results"]["perplexity"].items():
        assert out["results"]["perplexity"][metric]["value"] == pytest.approx(
            one["value"], rel=1e-5
        )


def test_results_of_the_same_weights_gather(
    tiny_bert: Path, rows: Path, texts: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    card = model / "README.md"
    card.write_text("---\ntags: []\n---\n# A model\n")
    assert run(model, tmp_path / "out", "--tasks", f"exact={rows}", "--limit", 2) == 0
    printed = capsys.readouterr().out
    for part in ("exact_match", "first 2 of 4 rows", "(NFE) of the last", "block_length 4"):
        assert part in printed
    first = card.read_text()
    assert first.startswith("---\ntags: []\n---\n# A model\n")
    assert "| exact | exact\\_match |" in first
    assert "NFE" in first
    assert run(model, tmp_path / "out", "--tasks", f"perplexity={texts}", "--steps", 2) == 0
    second = card.read_text()
    assert second.count("## Evaluation by") == 1
    assert "perplexity/2020" in second
    assert "| exact | exact\\_match |" in second
    assert "exact: the first 2 of 4 rows" in second
    printed = capsys.readouterr().out
    assert "exact: sampler: max_new_tokens 8, block_length 4, steps 4" in printed
    assert "perplexity: sampler: max_new_tokens 8, block_length 4, steps 2" in printed
    assert "\nlikelihood: " in printed, "that of both tasks is said once"
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [one["sampler"]["steps"] for one in saved["tasks"].values()] == [4, 2]
    assert run(model, tmp_path / "out", "--tasks", f"exact={rows}") == 0
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {name: one["rows"] for name, one in saved["tasks"].items()} == {
        "exact": 4,
        "perplexity": 2,
    }
    weights = load_file(model / "model.safetensors")
    first_name = next(iter(weights))
    weights[first_name] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert run(model, tmp_path / "out", "--tasks", f"exact={rows}") == 0
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(saved["results"]) == list(saved["tasks"]) == ["exact"]
    assert "perplexity" not in card.read_text()


@pytest.mark.parametrize("text", ["", "[", '{"results": {}}', "[" * 100_000])
def test_a_broken_earlier_file_is_replaced(
    tiny_bert: Path, rows: Path, tmp_path: Path, text: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "evaluation.json").write_text(text)
    assert run(tiny_bert, out, "--tasks", f"exact={rows}", "--limit", 1) == 0
    assert list(json.loads((out / "evaluation.json").read_text())["results"]) == ["exact"]


def test_all_refusals_come_together_before_the_model_loads(
    tiny_bert: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": "half\n')
    causal = tmp_path / "causal"
    causal.mkdir()
    (causal / "config.json").write_text(
        '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}'
    )
    save_file({"wte.weight": torch.zeros(1)}, causal / "model.safetensors")
    words = ["--tasks", f"gsm8k={rows}", f"perplexity={tmp_path / 'broken.jsonl'}"]
    assert run(causal, tmp_path / "out", *words) == 3
    lines = capsys.readouterr().err.splitlines()
    assert any(
        "tasks: expected a row with text in column question, got rows.jsonl:1" in line
        for line in lines
    )
    assert any("broken.jsonl" in line for line in lines)
    assert any("model: " in line and "gpt2" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_unknown_model_is_refused(rows: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(tmp_path / "none", tmp_path / "out", "--tasks", f"exact={rows}") == 4
    assert "error[4]: model:" in capsys.readouterr().err
