"""The benches: bars and references by hand, both programs at toy size by their entry points."""

from __future__ import annotations

import copy
import json
import math
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.forks import Forks
from helpers.support import ROOT, child_env, patience

from benches import a2d_gsm8k, a2d_toy, job
from benches.bars import missed
from benches.references import careful_loss, dllm_loss
from benches.shapes import draw_batch, draw_lengths

GOOD: dict[str, Any] = {
    "shapes": {
        "tiny_modernbert": {"vs_grouped": 3.5, "vs_random": 8.0, "rss_ratio": 0.45},
        "tiny_llada": {"vs_grouped": 3.5, "vs_random": 6.0, "rss_ratio": 0.45},
        "modernbert_base": {"vs_grouped": 1.35, "vs_random": 1.8, "rss_ratio": 0.9},
    },
    "loss_agreement": 1e-5,
    "grad_agreement": 1e-5,
    "leak": 0.0,
    "packing_efficiency": 0.98,
}


def run_bench(name: str, *argv: object) -> dict[str, Any]:
    """The last line that a bench prints."""
    command = [sys.executable, str(ROOT / "benches" / name), "--rehearse", *map(str, argv)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=child_env(), timeout=patience(300), check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def rehearse(
    forks: Forks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], dict[str, Any]]:
    """Return the run of a bench in this process: its jobs are forks, one evaluation a program."""
    evaluate = job.evaluate

    def train(_: job.Bench, folder: Path, values: Any, **__: Any) -> job.Ended:
        ended = forks.run(folder, *job.words_of(folder, values))
        return job.Ended(ended.code, ended.err, folder)

    def score(run: Path, *words: str) -> dict[str, Any]:
        if run.name == "ar-0":
            return evaluate(run, *words)
        done = forks.main("evaluate", run, *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    monkeypatch.setattr(job.Bench, "train", train)
    monkeypatch.setattr(job, "evaluate", score)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which a bench adds

    def run(name: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, "--rehearse"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "benches" / name), run_name="__main__")
        assert ended.value.code == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_figures_on_the_bars_miss_none() -> None:
    assert missed(GOOD) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("shapes tiny_modernbert vs_random", 7.99),
        ("shapes tiny_modernbert vs_grouped", 3.49),
        ("shapes tiny_llada vs_random", 5.99),
        ("shapes tiny_llada rss_ratio", 0.46),
        ("shapes modernbert_base vs_grouped", 1.34),
        ("shapes modernbert_base vs_random", math.nan),
        ("loss_agreement", 2e-5),
        ("grad_agreement", math.nan),
        ("leak", 1e-9),
        ("packing_efficiency", 0.97),
    ],
)
def test_a_missed_bar_is_named(place: str, value: float) -> None:
    summary = copy.deepcopy(GOOD)
    *path, key = place.split()
    target = summary
    for part in path:
        target = target[part]
    target[key] = value
    (line,) = missed(summary)
    assert line.startswith(place.removeprefix("shapes "))
    assert str(value) in line


def test_both_references_give_the_weighted_nll_of_masked_tokens() -> None:
    # Two tokens of a vocabulary of four; the first is masked and weighs 3. Logit ln 5 for the
    # truth: p = 5 / (5 + 3) = 5 / 8.
    logits = torch.zeros(1, 2, 4)
    logits[0, 0, 2] = math.log(5)
    targets, masked = torch.tensor([[2, 1]]), torch.tensor([[True, False]])
    weights = torch.tensor([[3.0, 0.0]])
    for loss in (dllm_loss, careful_loss):
        assert loss(logits, targets, weights, masked).item() == pytest.approx(3 * math.log(8 / 5))


@pytest.mark.parametrize("order", ["random", "grouped"])
def test_a_typical_micro_batch_stands_for_its_fifty(order: str) -> None:
    for seed in range(5):
        lengths, prompts = draw_batch("alpaca", order, 16, seed)
        pool = draw_lengths("alpaca", 800, seed)[0]
        rows = (pool if order == "random" else np.sort(pool)[::-1]).reshape(50, 16)
        assert lengths.tolist() in rows.tolist()
        assert lengths.mean() / lengths.max() == pytest.approx(
            pool.sum() / (16 * rows.max(1).sum()), abs=0.02
        )
        assert (prompts < lengths).all()


def test_grouped_documents_are_neighbours_in_length() -> None:
    lengths, _ = draw_batch("alpaca", "grouped", 16, seed=1)
    pool = sorted(draw_lengths("alpaca", 800, seed=1)[0].tolist(), reverse=True)
    assert any(lengths.tolist() == pool[begin : begin + 16] for begin in range(0, 800, 16))
    assert 0.93 < lengths.mean() / lengths.max() < 0.97
    assert lengths.mean() > 92, "half of the tokens are in longer documents"


@pytest.mark.end_to_end
def test_throughput_rehearsal(tmp_path: Path) -> None:
    saved = tmp_path / "results" / "cpu.json"
    found = run_bench("throughput.py", "--rounds", 1, "--save", saved)
    assert set(found["shapes"]) == {
        "tiny_modernbert",
        "tiny_llada",
        "tiny_dream",
        "modernbert_base",
    }
    for shape in found["shapes"].values():
        assert {
            "tokens_per_s",
            "vs_grouped",
            "vs_random",
            "vs_careful",
            "rss_ratio",
            "reference_batch",
        } <= set(shape)
        assert shape["tokens_per_s"] > 0
    assert found["loss_agreement"] <= 1e-5
    assert found["grad_agreement"] <= 1e-5
    assert found["leak"] == 0
    assert found["packing_efficiency"] >= 0.98
    kept = json.loads(saved.read_text(encoding="utf-8"))
    assert kept.pop("command").startswith("python benches/throughput.py --rehearse")
    assert kept == found


@pytest.mark.end_to_end
def test_scaling_rehearsal(tmp_path: Path) -> None:
    picture = tmp_path / "scaling.png"
    found = run_bench("scaling.py", "--picture", picture)
    assert [record["documents"] for record in found["documents"]] == [100, 200]
    assert all(record["step_ms"] > 0 for record in found["documents"])
    assert {record["shape"] for record in found["lengths"]} == {"tiny_modernbert", "tiny_llada"}
    assert all(0 < record["attention_share"] < 1 for record in found["lengths"])
    assert [record["packed_documents"] for record in found["packing"]] == [2, 4]
    assert {"fused_ms", "fused_mb", "plain_ms", "plain_mb"} <= set(found["vocabulary"][0])
    assert found["step_growth"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 200_000


@pytest.mark.end_to_end
def test_sampling_speed_rehearsal() -> None:
    found = run_bench("sampling_speed.py")
    assert {"speedup", "forwards_share", "same_text"} <= set(found)
    plain = found["settings"]["plain"]
    assert (plain["speedup"], plain["forwards_share"], plain["same_text"]) == (1.0, 1.0, True)
    # Nothing is sure to a model that has not learned: each step reveals its share, in every way.
    assert {one["forwards"] for one in found["settings"].values()} == {plain["forwards"]}


ARMS = {"block", "full", "ar"}


@pytest.mark.end_to_end
def test_a2d_gsm8k_rehearsal(rehearse: Callable[[str], dict[str, Any]]) -> None:
    found = rehearse("a2d_gsm8k.py")
    assert set(found) >= ARMS
    for arm in ARMS:
        one = found[arm]
        assert one["n"] == 4
        assert 0 <= one["correct"] <= 1
        assert one["stderr"] >= 0
        # Four steps of a tiny model on 384 tokens leave it near ln 384 = 5.95, and above 2.
        assert 2 < one["bound"] < 6.5
        assert all(math.isfinite(one[key]) for key in ("loss_first", "loss_last", "bound_stderr"))


def test_figures_of_several_seeds_have_the_error_of_their_mean() -> None:
    one = {"n": 500, "correct": 0.1, "stderr": 0.01, "bound": 1.0, "bound_stderr": 0.02}
    found = a2d_gsm8k.over_seeds([one | {"correct": share, "bound": share} for share in (1, 2, 3)])
    assert (found["n"], found["correct"]) == (500, 2)
    assert found["stderr"] == found["bound_stderr"] == pytest.approx(1 / math.sqrt(3))
    assert a2d_gsm8k.over_seeds([one]) == one


@pytest.mark.parametrize(("block", "misses"), [(1.0, 0), (1.94, 1), (math.nan, 1)])
def test_a_block_bound_three_errors_below_full_misses_no_bar(block: float, misses: int) -> None:
    full = {"bound": 2.0, "bound_stderr": 0.02, "stderr": 0.02}
    figures = {"block": full | {"bound": block}, "full": full}
    assert len(a2d_gsm8k.missed(figures)) == misses
    assert len(a2d_toy.missed({"seeds": [figures | {"seed": 0}]})) == misses


def test_a_data_file_is_split_at_its_end(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    file.write_text("1\n2\n3\n4\n", encoding="utf-8")
    train, test = a2d_gsm8k.split(tmp_path, file, 1)
    assert (train.read_text(), test.read_text()) == ("1\n2\n3\n", "4\n")


@pytest.mark.end_to_end
def test_reverse_curse_rehearsal(rehearse: Callable[[str], dict[str, Any]]) -> None:
    found = rehearse("reverse_curse.py")
    assert found["masked_parameters"] == found["causal_parameters"]
    for key in ("masked", "causal", "masked_forward", "causal_forward"):
        assert 0 <= found[key] < 0.2, "nothing is learned in three steps"
