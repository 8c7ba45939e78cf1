"""The GPU bench: bars, results and models by hand, and a rehearsal of all its cases."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.support import ROOT, child_env, patience

from benches import gpu, gpu_report
from benches.bars import GPU_CASES, missed_on_gpu
from benches.gpu_cases import CASES, GROUPS
from benches.random_models import random_model
from plugin.assembly.model import lora_settings
from plugin.config.families import FAMILIES
from plugin.models.load import build_model, load_model
from plugin.models.lora import add_adapter

ON_THE_BARS = {
    "step_ms": 20.0,
    "tokens_per_s": 155_000.0,
    "mfu": 0.78,
    "vs_padded": 17.0,
    "memory_vs_padded": 0.35,
    "first_step_cold_s": 25.0,
    "first_step_warm_s": 8.0,
    "foretold_of_taken": 1.1,
    "foretold_logits_gb": 1.61,
    "peak_gb": 12.0,
    "worker_ratio": 0.95,
}


def make_report(**changes: Any) -> dict[str, Any]:
    """Return the report of a card that every case brings exactly to its bars."""
    more = {"peak_minus_weights_gb": 3.0, "recompute": "none", "compile": True}
    cases = {name: {"title": name, **ON_THE_BARS, **more} for name in GPU_CASES}
    versions = {"torch": "2.13.0"}
    report = {"device": "NVIDIA H100 80GB HBM3, 550.1", "date": "2026-11-28", "versions": versions}
    return report | {"groups": {"small": 100.0}, "cases": cases} | changes


def test_every_case_of_the_gpu_bench_has_bars() -> None:
    assert set(GPU_CASES) == {*CASES, "worker"}
    assert sum(len(cases) for cases in GROUPS.values()) == len(CASES), "two cases have one name"


def test_gpu_figures_on_the_bars_miss_none() -> None:
    assert missed_on_gpu(make_report()) == []


@pytest.mark.parametrize(
    ("name", "figure", "value"),
    [
        ("modernbert_base_full_alpaca_cuda_graphs", "step_ms", 20.1),
        ("modernbert_base_full_alpaca_cuda_graphs", "vs_padded", 16.9),
        ("llada_8b_lora_alpaca", "vs_padded", 3.9),
        ("modernbert_base_full_rows", "mfu", 0.39),
        ("dream_7b_lora_rows", "mfu", None),
        ("llada_8b_full_rows", "mfu", 0.46),
        ("llada_8b_qlora_rows", "peak_gb", 12.1),
        ("modernbert_large_full_rows", "first_step_cold_s", 25.1),
        ("modernbert_base_full_tulu", "foretold_of_taken", 1.11),
        ("modernbert_base_full_tulu", "foretold_of_taken", 0.89),
        ("worker", "worker_ratio", 1.06),
    ],
)
def test_a_missed_gpu_bar_is_named(name: str, figure: str, value: float | None) -> None:
    report = make_report()
    report["cases"][name][figure] = value
    (line,) = missed_on_gpu(report)
    assert line.startswith(f"{name} {figure}: {value}, expected at ")


def test_a_missing_reference_misses_its_gpu_bars() -> None:
    report = make_report()
    for figure in ("vs_padded", "memory_vs_padded"):
        del report["cases"]["llada_8b_lora_alpaca"][figure]
    assert len(missed_on_gpu(report)) == 2


def test_a_failed_case_is_named_with_its_reason() -> None:
    report = make_report()
    report["cases"]["worker"] = {"title": "a job", "error": "CUDA out of memory"}
    assert missed_on_gpu(report) == ["worker: CUDA out of memory"]


def test_the_reference_is_compared_step_by_step() -> None:
    """Ratios 4, 2 and 3: their median, over the steps that both have."""
    ours = {"steps_ms": [1.0, 2.0, 3.0, 50.0], "peak_minus_weights_gb": 1.0}
    found = gpu.compare(ours, {"steps_ms": [4.0, 4.0, 9.0], "peak_minus_weights_gb": 4.0})
    assert (found["vs_padded"], found["memory_vs_padded"]) == (3.0, 0.25)


def test_results_of_one_environment_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "results" / "h100.json"
    one, other = ({name: {"title": name}} for name in ("one", "other"))
    gpu_report.save(make_report(cases=one), file)
    gpu_report.save(make_report(cases=other, groups={"lora": 5.0}), file)
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert set(kept["cases"]) == {"one", "other"}
    assert kept["groups"] == {"small": 100.0, "lora": 5.0}
    gpu_report.save(make_report(cases=one, versions={"torch": "2.14.0"}), file)
    assert set(json.loads(file.read_text(encoding="utf-8"))["cases"]) == {"one"}


def test_results_are_named_after_card_and_date() -> None:
    name = gpu_report.results_file(Path("results"), "NVIDIA H100 80GB HBM3, 550.1").name
    assert name.startswith("nvidia-h100-80gb-hbm3-20")


def test_the_readme_table_has_a_row_a_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = make_report()
    report["cases"] = {name: report["cases"][name] for name in ("llada_8b_lora_rows", "worker")}
    report["cases"]["worker"] = {"title": "a job", "error": "CUDA out of memory"}
    report["cases"]["llada_8b_lora_rows"]["reference"] = {"tokens_per_s": 1.0}
    file = tmp_path / "h100.json"
    gpu_report.save(report, file)
    assert gpu.main(["--table", str(file)]) == 0
    *_, head, _, case, failed = capsys.readouterr().out.splitlines()
    assert {head.count("|"), case.count("|"), failed.count("|")} == {len(gpu_report.COLUMNS) + 1}
    for figure in ("155,000", "78.0%", "20.0", "25.0, 8.0", "12.00 (3.00)", "17.0x, 0.35"):
        assert f"| {figure} |" in case
    assert failed.startswith("| a job | failed: CUDA out of memory |")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--cases", "small,big"],
            "error[2]: cases: expected names among small, encoder, lora, full, float8, block, worker, got big.",
        ),
        (
            ["--cases", "small"],
            "error[2]: device: expected a CUDA GPU, got none. Use --rehearse to try the code on a CPU.",
        ),
    ],
)
def test_a_bench_that_cannot_run_says_so_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(words) == 2
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_case_whose_process_dies_does_not_end_the_bench() -> None:
    """The first task is finished, the second is killed, the third never begins."""
    program = (
        "import json, os, signal, sys;"
        'print(json.dumps({"task": "warm:one", "step_ms": 1.0}), flush=True);'
        'print("out of luck", file=sys.stderr, flush=True);'
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    tasks = ("warm:one", "warm:two", "warm:three")
    found = gpu.read_tasks([sys.executable, "-c", program], tasks, child_env())
    killed = {"error": f"ended with code {-signal.SIGKILL}: out of luck"}
    assert found == {"warm:one": {"step_ms": 1.0}, "warm:two": killed, "warm:three": killed}


def test_a_failed_case_keeps_its_reason_and_tries_no_more() -> None:
    asked: list[str] = []

    def measure(task: str) -> dict[str, Any]:
        asked.append(task)
        return {"error": "CUDA out of memory"}

    case = CASES["llada_8b_lora_alpaca"]
    assert gpu.play_case(case, measure) == {"title": case.title, "error": "CUDA out of memory"}
    assert asked == ["cold:llada_8b_lora_alpaca"]


def test_a_random_4bit_model_is_built_as_a_loaded_one(tmp_path: Path) -> None:
    """Layers, dtypes and sizes are those that the worker trains."""
    pytest.importorskip("bitsandbytes")
    case = CASES["llada_8b_qlora_rows"].narrow()
    params, device = case.params("cpu"), torch.device("cpu")
    made = random_model(case.shape.config(), params, torch.bfloat16, device)
    plain: Any = build_model(case.shape.config())
    plain.to(torch.bfloat16).save_pretrained(tmp_path)
    base = load_model(str(tmp_path), dtype=torch.bfloat16, four_bit=True)
    loaded = add_adapter(base, FAMILIES["llada"], lora_settings(params), [])

    def layers(model: Any) -> list[tuple[str, type]]:
        return [(name, type(layer)) for name, layer in model.named_modules()]

    def weights(model: Any) -> list[tuple[str, torch.dtype, torch.Size, bool]]:
        return [(name, w.dtype, w.shape, w.requires_grad) for name, w in model.named_parameters()]

    assert layers(made) == layers(loaded)
    assert weights(made) == weights(loaded)
    assert any(kind.__name__ == "Linear4bit" for _, kind in layers(made))


@pytest.mark.end_to_end
def test_gpu_bench_rehearsal(tmp_path: Path) -> None:
    saved = tmp_path / "results" / "rehearsal.json"
    command = [sys.executable, str(ROOT / "benches" / "throughput.py"), "--device", "cuda"]
    done = subprocess.run(
        [*command, "--rehearse", "--bars", "--save", str(saved)],
        capture_output=True,
        text=True,
        env=child_env(),
        timeout=patience(300),
        check=False,
    )
    assert done.returncode == 1, done.stderr  # a CPU is on no bar of an H100
    assert "bar missed: llada_8b_lora_rows mfu: None, expected at least 0.6" in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads(saved.read_text(encoding="utf-8"))
    cases = found["cases"]
    assert set(cases) == set(GPU_CASES)
    assert [case["error"] for case in cases.values() if "error" in case] == []
    for name, case in cases.items():
        assert case["tokens_per_s"] > 0
        assert case["first_step_warm_s"] > 0
        assert case["recompute"] == "none"
        assert case["compile"] is False
        assert name == "worker" or case["first_step_cold_s"] > 0
        assert ("vs_padded" in case) == (name != "worker" and CASES[name].reference)
    assert cases["worker"]["worker_ratio"] > 0
