"""`plan`: what it prints, the jobs that it writes, and the fit of a folder of runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.stored_folder import StoredPart, write_stored
from helpers.support import TINY_CONFIG, run_main, write_rows

from plugin.commands.plan import __main__ as plan
from plugin.commands.plan import gpus as plan_gpus
from plugin.config.parse import parse
from plugin.data.tokenizer import train_tokenizer
from plugin.planning.fit import Point
from plugin.planning.runs import read_points
from plugin.planning.sizes import SIZES
from plugin.run.folder import RunFolder
from plugin.run.outcome import Result, Throughput
from plugin.run.run_file import RunFile

Plan = Callable[..., dict[str, Any]]
TOY = {  # LLaDA's shape at toy size
    "model_type": "llada",
    "d_model": 64,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 3,
    "mlp_hidden_size": 96,
    "vocab_size": 300,
    "embedding_size": 320,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Plan:
    def call(*words: object, code: int = 0) -> dict[str, Any]:
        found = plan.main([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        assert found == code, err
        return json.loads(out) if code == 0 else {"errors": err.splitlines()}

    return call


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("--flops 100e18 --model 1028", 30_932),
        ("--flops 10e18 --model 170", 18_710),
        ("--flops 60e18 --model 170 --stochastic_length 0.01", 112_828),
        ("--flops 1600e18 --model 1028 --stochastic_length 0.01 --num_machines 2", 497_413),
    ],
)
def test_published_steps_are_printed(planned: Plan, words: str, steps: int) -> None:
    found = planned(*words.split())
    assert found["steps"] == steps
    assert found["gpus"] == []
    assert found["rows_per_step"] == 256


def test_without_a_size_the_best_one_is_chosen(planned: Plan) -> None:
    found = planned("--tokens", "34e9", "--tokens_per_parameter", 200)
    assert found["best"]["parameters"] == pytest.approx(170e6)
    assert found["model"]["size"] == 170
    assert found["steps"] == int(34e9 / (256 * 2048))
    assert planned("--flops", 6 * 170e6 * 34e9)["model"]["size"] == 170


@pytest.mark.parametrize("config", [TOY, TINY_CONFIG], ids=["llada", "modernbert"])
def test_parameters_of_a_config_are_exact(
    planned: Plan, tmp_path: Path, config: dict[str, Any]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    found = planned("--tokens", "1e6", "--model_config", file, "--max_length", 64)["model"]
    if config is TOY:
        kv = 64 * 64 // 2
        layer = 2 * 64 * 64 + 2 * kv + 3 * 64 * 96 + 2 * 64
        assert found["parameters"] == 3 * layer + 64
        assert found["total_parameters"] == 3 * layer + 64 + 2 * 320 * 64
    else:  # Wqkv, Wo, gate and up in one, down; no norm before the first attention
        layer = 4 * 32 * 32 + 3 * 32 * 64
        norms = 2 * 32 * 2 - 32 + 2 * 32
        assert found["parameters"] == 2 * layer + norms
        assert found["training_method"] == "bert"


def test_a_config_that_is_no_model_is_refused(planned: Plan, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "gpt2"}')
    (error,) = planned("--tokens", "1e6", "--model_config", file, code=4)["errors"]
    assert error.startswith("error[4]: model_config: ")


def test_a_method_of_another_family_is_refused(planned: Plan) -> None:
    (error,) = planned("--tokens", "1e9", "--training_method", "bert", code=2)["errors"]
    assert error.startswith("error[2]: training_method: ")


def test_a_method_of_rows_with_noisy_copies_is_refused(tmp_path: Path) -> None:
    shape = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}
    shape |= {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(shape))
    asked = ("plan", "--tokens", "1e6", "--model_config", config, "--training_method", "block")
    done = run_main(*asked, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "training_method: expected a method whose rows are documents, got block" in done.stderr


def test_a_budget_below_a_step_is_refused(planned: Plan) -> None:
    (error,) = planned("--flops", "1e12", "--model", 34, code=2)["errors"]
    assert error.startswith("error[2]: flops: expected a budget of a step or more (1.06e+14 FLOPs")


def test_slow_shapes_are_warned_of(planned: Plan) -> None:
    (warning,) = planned("--flops", "1e18", "--model", 75)["warnings"]
    assert (warning["field"], warning["value"], warning["better"]) == ("n_heads", 8, 10)


# --- GPUs


def test_hours_and_cost_follow_from_a_stated_mfu(planned: Plan, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TOY))
    words = ("--tokens", "1e9", "--model_config", file, "--max_length", 128, "--num_gpus", 2)
    rows = planned(*words, "--gpu", "H100", "RTX-4090", "--mfu", 0.5, "--price_per_hour", 3)["gpus"]
    body = 3 * (2 * 64 * 64 + 64 * 64 + 3 * 64 * 96)
    tokens = int(1e9 / (256 * 128)) * 256 * 128
    work = tokens * (6 * body + 0.5 * 6 * 320 * 64 + 3 * 3 * 4 * 64 * 128)
    assert rows[0]["work_flops"] == pytest.approx(work, rel=1e-6)
    for row, peak in zip(rows, (989.5e12, 165.2e12), strict=True):
        hours = row["work_flops"] / (peak * 0.5 * 2) / 3600
        assert row["hours"] == pytest.approx(hours)
        assert row["cost"] == pytest.approx(hours * 2 * 3)
        assert row["mfu_from"] == "MFU 50.0%: as stated"


def test_memory_is_weights_gradients_and_states(planned: Plan, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TOY))
    words = ("--tokens", "1e6", "--model_config", file, "--max_length", 64)
    (row,) = planned(*words, "--gpu", "H100")["gpus"]
    total = planned(*words)["model"]["total_parameters"]
    memory = row["memory"]
    assert memory["weights"] == pytest.approx(4 * total, rel=0.01)
    assert memory["gradients"] == 4 * total
    assert memory["optimizer"] == pytest.approx(8 * total, rel=0.01)
    assert memory["peak"] > memory["weights"] + memory["gradients"] + memory["optimizer"]
    assert (memory["fits"], memory["recompute"], memory["sharded_over"]) == (True, "none", 1)


@pytest.mark.slow
def test_a_model_too_large_for_a_gpu_is_sharded(planned: Plan) -> None:
    words = ("--flops", "1e20", "--model", 2121, "--gpu", "RTX-4090", "--num_gpus")
    (alone,) = planned(*words, 1)["gpus"]
    (shared,) = planned(*words, 8)["gpus"]
    assert not alone["memory"]["fits"]
    assert shared["memory"]["sharded_over"] == 8
    assert shared["memory"]["fits"]


def test_the_baseline_predicts_every_token(planned: Plan, tmp_path: Path) -> None:
    """Its head works on all tokens, and its attention on half of the pairs."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TOY))
    words = ("--tokens", "1e9", "--model_config", file, "--max_length", 128, "--gpu", "H100")
    work = {
        method: planned(*words, "--training_method", method)["gpus"][0]["work_flops"]
        for method in ("llada", "causal")
    }
    tokens = int(1e9 / (256 * 128)) * 256 * 128
    pairs = tokens * 3 * 3 * 4 * 64
    head = 0.5 * 6 * 320 * 64 * tokens
    assert work["causal"] - work["llada"] == pytest.approx(head - pairs * (128 - 129 / 2))


def test_an_unknown_mfu_is_null(
    planned: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TOY))
    monkeypatch.setattr(plan_gpus, "measurements", lambda folder: [])
    words = ("--tokens", "1e6", "--model_config", file, "--max_length", 64, "--gpu", "H200")
    (row,) = planned(*words, "--price_per_hour", 3)["gpus"]
    assert (row["mfu"], row["hours"], row["cost"]) == (None, None, None)
    assert "unknown" in row["mfu_from"]


def test_an_mfu_of_another_gpu_is_named(
    planned: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TOY))
    case = {"mfu": 0.5, "matmul_tflops": 791.6, "parameters": 10**8}
    report = {"device": "NVIDIA H100 80GB HBM3, 550", "cases": {"x_full_rows": case}}
    (tmp_path / "h100.json").write_text(json.dumps(report))
    found = plan_gpus.measurements(tmp_path)
    monkeypatch.setattr(plan_gpus, "measurements", lambda folder: found)
    words = ("--tokens", "1e6", "--model_config", file, "--max_length", 64, "--gpu", "H100", "H200")
    own, other = planned(*words)["gpus"]
    assert own["mfu_from"].startswith("MFU 40.0%: measured on NVIDIA H100")
    assert other["mfu_from"].startswith("MFU 40.0%: of another GPU, measured on NVIDIA H100")


def test_lines_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--flops", "10e18", "--model", "75"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model    size 75: 75,387,520 parameters without embeddings")
    assert lines[1].startswith("run      42,167 steps of 256 rows x 2048 tokens")
    assert lines[2].startswith("warning: n_heads: 8 makes heads 80 wide")


# --- jobs


def test_a_job_is_what_the_plan_says(planned: Plan, tmp_path: Path) -> None:
    job = tmp_path / "new" / "job.yaml"
    words = ("--flops", "10e18", "--model", 170, "--num_gpus", 4, "--stochastic_length", 0.01)
    found = planned(*words, "--dataset_name", "corpus.jsonl", "--out", job)
    params = parse(yaml.safe_load(job.read_text())).params
    assert params.train_steps == found["steps"]
    assert params.batch_size * params.gradient_accumulation_steps * 4 == 256
    assert (params.max_length, params.stochastic_length) == (2048, 0.01)
    assert (params.training_method, params.training_stage) == ("llada", "pretrain")
    assert params.streaming
    shape = json.loads(Path(params.model_config_file).read_text())
    assert shape == SIZES[170].config()


def test_a_job_of_several_machines_says_how_to_start(planned: Plan, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    words = ("--flops", "10e18", "--model", 170, "--num_machines", 2, "--dataset_name", "d")
    planned(*words, "--out", job)
    assert "--num_machines 2 --machine_rank 0 --main_process_ip ADDRESS" in job.read_text()
    assert parse(yaml.safe_load(job.read_text())).params.num_machines == 1


def test_a_prepared_folder_is_the_data_of_the_job(planned: Plan, tmp_path: Path) -> None:
    folder = write_stored(tmp_path / "corpus", [StoredPart(train=[[5] * 1000] * 20)])
    words = ("--data", folder, "--model", 6, "--max_length", 256, "--batch_size", 8)
    found = planned(*words, "--out", tmp_path / "job.yaml")
    params = parse(yaml.safe_load((tmp_path / "job.yaml").read_text())).params
    assert params.dataset_name == str(folder)
    assert not params.streaming
    assert (found["steps"], params.train_steps) == (9, 9)
    assert json.loads(Path(params.model_config_file).read_text())["vocab_size"] == 320


def test_a_grid_is_a_job_for_each_budget_and_size(planned: Plan, tmp_path: Path) -> None:
    words = ("--grid", "1e17,3e17", "--sizes", "6,19,34", "--dataset_name", "d", "--out", tmp_path)
    jobs = planned(*words)["jobs"]
    assert len(jobs) == 6
    for job in jobs:
        values = yaml.safe_load(Path(job["job"]).read_text())
        assert parse(values).params.train_steps == job["steps"]
        assert job["flops"] == pytest.approx(float(Path(job["job"]).stem.split("-")[0]), rel=0.01)
    assert len(list(tmp_path.iterdir())) == 12


@pytest.mark.end_to_end
def test_a_planned_job_trains(planned: Plan, tmp_path: Path) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TOY))
    texts = [{"text": f"{n} and {n + 1} make {2 * n + 1}. " * 4} for n in range(80)]
    data = write_rows(tmp_path / "data.jsonl", texts)
    job = tmp_path / "job.yaml"
    words = ("--tokens", 2 * 4 * 32, "--model_config", config, "--max_length", 32)
    planned(*words, "--batch_size", 4, "--dataset_name", data, "--out", job)
    done = run_main("train", "--config", job, "--run_dir", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = RunFolder(tmp_path / "run").read_run().result
    assert result
    assert result.throughput
    assert result.steps == 2
    tokens = result.throughput.tokens_per_s * result.throughput.training_seconds
    assert tokens == pytest.approx(2 * 4 * 32, rel=0.1)
    laws = plan.main(["--fit", str(tmp_path / "run")])
    assert laws == 2  # a single run is no parabola


@pytest.mark.end_to_end
def test_a_job_on_a_prepared_folder_trains(planned: Plan, tmp_path: Path) -> None:
    texts = [f"{n} and {n + 1} make {2 * n + 1}. " * 4 for n in range(80)]
    tokenizer = train_tokenizer(texts, 300)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    part = StoredPart(train=ids[8:], evaluation=ids[:8])
    folder = write_stored(tmp_path / "corpus", [part], tokenizer)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TOY))
    job = tmp_path / "job.yaml"
    words = ("--data", folder, "--model_config", config, "--max_length", 64, "--batch_size", 16)
    found = planned(*words, "--training_method", "causal", "--out", job)
    assert found["steps"] == sum(map(len, ids[8:])) // (16 * 64)
    done = run_main("train", "--config", job, "--run_dir", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = RunFolder(tmp_path / "run").read_run().result
    assert result
    assert result.steps == found["steps"]
    assert result.eval_loss
    read = read_points([tmp_path / "run"], lambda path: 7)
    assert [(one.method, one.parameters) for one in read] == [("causal", 7)]
    assert read[0].tokens == pytest.approx(found["tokens"], rel=0.1)


# --- fits


def write_run(folder: Path, point: Point, shape: dict[str, Any]) -> None:
    """Write a finished run of this point, with the configuration of its model."""
    (folder / "fused").mkdir(parents=True)
    (folder / "fused" / "config.json").write_text(json.dumps(shape))
    speed = Throughput(tokens_per_s=point.tokens, supervised_tokens_per_s=1.0, training_seconds=1.0)
    result = Result(outcome="done", code=0, eval_loss=point.loss, throughput=speed)
    params = {"training_method": point.method, "dataset_name": "d"}
    RunFolder(folder).write_run(RunFile(params=params, result=result))


def test_a_grid_of_the_baseline_names_its_method(planned: Plan, tmp_path: Path) -> None:
    words = ("--grid", "1e17", "--sizes", "6", "--dataset_name", "d", "--out", tmp_path)
    (job,) = planned(*words, "--training_method", "causal")["jobs"]
    assert job["job"].endswith("1e+17-6m-causal.yaml")
    params = parse(yaml.safe_load(Path(job["job"]).read_text()))
    assert params.params.training_method == "causal"
    assert params.notes == ()


def test_the_compute_gap_is_printed_with_a_baseline(
    planned: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masked runs whose best losses are those of causal ones with a fourth of their FLOPs."""
    for method, dearer in (("llada", 4), ("causal", 1)):
        for flops in (1e16, 4e16, 1.6e17):
            for factor in (0.5, 1, 2):
                shape = TOY | {"d_model": 64 * round(4 * factor * (flops / 1e16) ** 0.25)}
                loss = 9 * (flops / dearer) ** -0.02 + 0.1 * math.log(factor) ** 2
                name = f"{method}-{flops:.0e}-{factor}"
                point = Point(method=method, parameters=1, tokens=1.0, loss=loss, run="")
                write_run(tmp_path / name, point, shape)
                size = planned(
                    "--tokens", "1e9", "--model_config", tmp_path / name / "fused" / "config.json"
                )
                tokens = flops / 6 / size["model"]["parameters"]
                shutil.rmtree(tmp_path / name)
                point = Point(method=method, parameters=1, tokens=tokens, loss=loss, run="")
                write_run(tmp_path / name, point, shape)
    found = planned("--fit", tmp_path)
    gaps = {round(gap["flops"] / 1e16): gap["ratio"] for gap in found["compute_gap"]}
    assert gaps == pytest.approx({1: 4, 4: 4, 16: 4}, rel=0.1)
    assert found["mean_gap"]["llada"] == pytest.approx(4, rel=0.1)
    assert plan.main(["--fit", str(tmp_path)]) == 0
    assert "llada at 4e+16 FLOPs equals causal at 1e+16: 4" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_of_runs_is_fitted_and_drawn(planned: Plan, tmp_path: Path) -> None:
    """Losses with their minimum at N = C^0.5 / 30, whose exponent must come back."""
    for flops in (4e16, 1.2e17, 4e17):
        best = flops**0.5 / 30
        for size in sorted(SIZES.values(), key=lambda s: abs(math.log(s.parameters / best)))[:4]:
            loss = 3 * (flops / 1e17) ** -0.05 + 0.05 * math.log(size.parameters / best) ** 2
            point = Point(
                method="llada",
                parameters=size.parameters,
                tokens=flops / 6 / size.parameters,
                loss=loss,
                run="",
            )
            write_run(tmp_path / "runs" / f"{flops:.0e}-{size.name}", point, size.config())
    found = planned(
        "--fit", tmp_path / "runs", "--png", tmp_path / "fit.png", "--out", tmp_path / "f.json"
    )
    law = found["fits"]["llada"]["parameters"]
    assert law["exponent"] == pytest.approx(0.5, rel=0.02)
    assert law["scale"] == pytest.approx(1 / 30, rel=0.2)
    assert found["fits"]["llada"]["tokens"]["exponent"] == pytest.approx(0.5, rel=0.02)
    assert found["fits"]["llada"]["loss"]["exponent"] == pytest.approx(-0.05, rel=0.02)
    assert (tmp_path / "fit.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "f.json").read_text())["fits"] == found["fits"]
    best = planned("--flops", "4e18", "--law", tmp_path / "f.json")["best"]
    assert best["parameters"] == pytest.approx((4e18) ** 0.5 / 30, rel=0.1)


def test_runs_that_make_no_parabola_are_refused(planned: Plan, tmp_path: Path) -> None:
    point = Point(method="llada", parameters=1, tokens=1e9, loss=3.0, run="")
    write_run(tmp_path / "a", point, TOY)
    (error,) = planned("--fit", tmp_path, code=2)["errors"]
    assert "a parabola needs 3 sizes, got 1" in error
    (error,) = planned("--fit", tmp_path / "none", code=2)["errors"]
    assert error.startswith("error[2]: fit: expected run folders")
