"""Memory of a run: the least recomputation that fits, refusal of what cannot fit, and advice."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from helpers.published_checkpoints import write_checkpoint
from helpers.support import (
    MAIN,
    ROOT,
    TINY_CONFIG,
    child_env,
    pairs,
    patience,
    refusal,
    try_out_here,
    write_rows,
)

from plugin import cli
from plugin.assembly import memory as planning
from plugin.assembly import resolve as resolving
from plugin.assembly.attention import choose_compile
from plugin.assembly.memory import MemoryPlan, choose_recompute
from plugin.assembly.memory_advice import cheaper_settings, check_memory
from plugin.assembly.stream import pack_tokens
from plugin.base.errors import Code, JobError
from plugin.config.params import Params
from plugin.config.parse import parse
from plugin.models.load import load_model
from plugin.parent import check as parent_check
from plugin.training import memory
from plugin.training.memory import KINDS, Memory, free_bytes
from plugin.worker import check as trial
from plugin.worker.out_of_memory import is_out_of_memory

GB = 10**9
ALL = ("none", "selective", "full")
NEEDS = {"none": 10 * GB, "selective": 6 * GB, "full": 3 * GB}


def need(peak: int, **kinds: int) -> Memory:
    return Memory(**{**dict.fromkeys(KINDS, 0), **kinds}, heap=0, peak=peak)


# --- recomputation


@pytest.mark.parametrize(
    ("room", "modes", "chosen"),
    [
        (20, ALL, "none"),
        (10 / memory.ROOM + 0.01, ALL, "none"),
        (10, ALL, "selective"),
        (5, ALL, "full"),
        (1, ALL, "full"),
        (10, ("none", "full"), "full"),
    ],
)
def test_auto_recomputes_as_little_as_fits(
    room: float, modes: tuple[str, ...], chosen: str
) -> None:
    plan = choose_recompute("auto", lambda mode: need(NEEDS[mode]), int(room * GB), modes)
    assert (plan.recompute, plan.memory.peak) == (chosen, NEEDS[chosen])
    assert f"none needs about {NEEDS['none'] / GB:.2f} GB" in plan.why


def test_what_is_asked_for_is_done_whatever_the_room() -> None:
    asked: list[str] = []
    plan = choose_recompute(
        "selective", lambda mode: asked.append(mode) or need(NEEDS[mode]), 1, ALL
    )
    assert (plan.recompute, asked) == ("selective", ["selective"])


@pytest.mark.parametrize("ways", [{"compile": "on"}, {"compile": "on", "recompute": "auto"}])
def test_compiled_layers_are_never_recomputed_selectively(
    ways: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        planning, "choose_recompute", lambda asked, make, room, modes: seen.append(tuple(modes))
    )
    for params in (Params(**ways), Params()):
        planning.plan_memory(
            params,
            None,
            None,
            memory.Setting(torch.device("cpu"), torch.float32, None, "adamw", False),
            GB,
        )
    assert seen == [("none", "full"), ALL]
    with pytest.raises(JobError, match="recompute") as caught:
        parse({"dataset_name": "d", "model_name": "m", "compile": "on", "recompute": "selective"})
    assert caught.value.code == Code.CONFIGURATION


def test_auto_compiles_no_layers_checkpointed_selectively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selective checkpointing keeps single operations, which a compiled layer does not show."""
    monkeypatch.setattr("plugin.assembly.attention._why_no_compile", lambda device: "")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [choose_compile(Params(), cuda, mode)[0] for mode in ALL] == [True, False, True]
    assert "selective" in choose_compile(Params(), cuda, "selective")[1]
    assert choose_compile(Params(), cpu, "none")[0] is False
    assert choose_compile(Params(compile="on"), cpu, "none")[0] is True
    assert choose_compile(Params(compile="off"), cuda, "none")[0] is False


def test_compile_on_without_a_compiler_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(JobError) as caught:
        choose_compile(Params(compile="on"), torch.device("cpu"), "none")
    (problem,) = caught.value.problems
    assert (problem.field, problem.code) == ("compile", 2)
    assert "g++" in problem.got
    assert choose_compile(Params(), torch.device("cpu"), "none")[0] is False


# --- free memory


def test_container_limit_counts_and_cached_pages_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of files that the container has read can be given back."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50 * GB))
    cpu = torch.device("cpu")
    assert free_bytes(cpu) == 50 * GB
    (tmp_path / "memory.current").write_text(f"{7 * GB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2 * GB}\ninactive_file {4 * GB}\nactive_file 1\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(cpu) == 50 * GB
    (tmp_path / "memory.max").write_text(f"{8 * GB}\n")
    assert free_bytes(cpu) == 5 * GB


def test_this_machine_has_some() -> None:
    assert 10**8 < free_bytes(torch.device("cpu")) < 1 << 60


# --- advice


def applied(params: Params, setting: str) -> Params:
    """Return the job, parsed with one piece of advice followed."""
    words = setting.replace(" with ", " ").split()
    values = {name: value for name, value in params.as_json().items() if value != ""}
    return parse({**values, **dict(zip(words[::2], words[1::2], strict=True))}).params


def jobs() -> list[Params]:
    base: dict[str, Any] = {"dataset_name": "d.jsonl", "model_name": "m", "max_length": 64}
    sizes = [
        {"batch_size": b, "gradient_accumulation_steps": g} for b in (1, 2, 7, 12) for g in (1, 3)
    ]
    tokens: list[dict[str, Any]] = [{}, {"tokens_per_batch": 64}, {"tokens_per_batch": 1000}]
    kinds: list[dict[str, Any]] = [
        {},
        {"lora": True, "dtype": "float32"},
        {"lora": True, "load_in_4bit": True, "recompute": "full"},
        {"optim": "adamw_8bit", "attn_implementation": "eager"},
        {"streaming": True, "training_stage": "pretrain", "num_train_epochs": 0},
        {"model_name": "", "model_config": "c.json", "dtype": "float32"},
    ]
    return [
        parse({**base, **a, **b, **c}).params for a, b, c in itertools.product(sizes, tokens, kinds)
    ]


def effective_batch(params: Params) -> int:
    """Return the documents of a step, or its tokens where tokens set its size."""
    return params.gradient_accumulation_steps * (
        pack_tokens(params) if params.streaming else params.batch_size
    )


PLANS = (
    None,
    MemoryPlan("none", need(9 * GB, activations=8 * GB, weights=GB), ""),
    MemoryPlan("full", need(9 * GB, optimizer=6 * GB, weights=3 * GB), ""),
)


@pytest.mark.parametrize("plan", PLANS, ids=["unknown", "activations", "states"])
def test_advice_is_a_valid_job_with_equal_effective_batch(plan: MemoryPlan | None) -> None:
    for params in jobs():
        if plan and params.recompute not in ("auto", plan.recompute):
            continue  # no plan of that job
        settings = cheaper_settings(params, plan)
        assert len(settings) == len(set(settings)) <= 3
        for setting in settings:
            other = applied(params, setting)
            assert other != params, setting
            assert effective_batch(other) == effective_batch(params), (setting, params)
            if plan and plan.recompute == "full":
                assert "recompute" not in setting, "it is what did not fit"


def test_advice_fits_what_is_biggest() -> None:
    params = parse({"dataset_name": "d", "model_name": "m", "batch_size": 8}).params
    _, grown, heavy = PLANS
    assert cheaper_settings(params, grown) == [
        "batch_size 4 with gradient_accumulation_steps 2",
        "tokens_per_batch 2048",
        "recompute full",
    ]
    assert cheaper_settings(params, heavy)[:2] == ["optim adamw_8bit", "lora true"]


def test_far_too_little_room_is_exit_5_and_names_the_biggest() -> None:
    params = parse({"dataset_name": "d", "model_name": "m", "batch_size": 8}).params
    plan = MemoryPlan("none", need(10 * GB, weights=2 * GB, activations=7 * GB), "")
    check_memory(params, plan, 9 * GB)  # a close case may succeed
    with pytest.raises(JobError) as caught:
        check_memory(params, plan, 7 * GB)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (5, "memory")
    assert (
        problem.got
        == "7.00 GB free where about 10.00 GB are needed; most goes to activations (7.00 GB of about 10.00 GB)"
    )
    assert problem.fix.count("; or ") == 2


def test_out_of_memory_errors_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    )
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    )
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


# --- check


@pytest.fixture
def check(
    tmp_path: Path,
    pairs_file: Path,
    tiny_config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parent_check, "_try_out", try_out_here)

    def call(
        *flags: object, model: tuple[str, object] = ("--model_config", tiny_config)
    ) -> tuple[int, str, str]:
        job = (*model, "--dataset_name", pairs_file, "--max_length", 64, "--train_device", "cpu")
        code = cli.main([*map(str, ("check", *job, *flags))])
        return code, *capsys.readouterr()

    return call


def test_check_reports_needed_and_free_memory(check: Callable[..., Any]) -> None:
    code, out, _ = check("--json", "--batch_size", 8)
    assert code == 0
    plan = json.loads(out)["plan"]
    needs = plan["memory"]
    assert set(needs) == {*KINDS, "heap", "peak", "free", "device"}
    assert needs["gradients"] == 4 * plan["parameters"]
    assert needs["weights"] == pytest.approx(needs["gradients"], rel=0.001), (
        "rotary tables are no parameters"
    )
    assert needs["optimizer"] == pytest.approx(2 * needs["gradients"], rel=0.001)
    assert min(needs["activations"], needs["logits"]) > 0
    assert (
        needs["weights"] + needs["gradients"] + needs["optimizer"] < needs["peak"] < needs["free"]
    )
    assert any(note.startswith("recompute: none; none needs about") for note in plan["notes"])


def test_check_shows_it_in_one_line(check: Callable[..., Any]) -> None:
    _, out, _ = check()
    (line,) = [line for line in out.splitlines() if line.startswith("memory ")]
    assert all(kind in line for kind in (*KINDS, "at the peak", "GB free"))


def test_check_refuses_what_cannot_fit_with_exit_5(
    check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (resolving, trial):
        monkeypatch.setattr(module, "free_bytes", lambda device: 100_000)
    code, _, err = check("--batch_size", 8)
    lines = [line for line in err.splitlines() if line.startswith("error[")]
    assert refusal((code, lines, ""))[:2] == (5, "memory")
    assert "most goes to" in lines[0]
    assert "batch_size 4 with gradient_accumulation_steps 2" in lines[0]
    assert "recompute full" not in lines[0], "auto did that already"


@pytest.mark.parametrize("tried", [trial.SMALL, 0], ids=["itself", "narrow"])
def test_check_packs_a_model_published_with_dropout(
    check: Callable[..., Any], tmp_path: Path, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SMALL", tried)
    folder = write_checkpoint(
        tmp_path / "bert", "classic", [text for row in pairs() for text in row.values()]
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1})
    )
    code, _, err = check("--packing", "on", model=("--model_name", folder))
    assert code == 0, err
    assert "error[" not in err


# --- a run

# The limit holds for every later program. The memory of imports is known only after them.
LIMITED = """\
import os, resource, sys
sys.path.insert(0, sys.argv[1])
import plugin.worker.__main__
held = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held + 300_000_000,) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.end_to_end
def test_out_of_memory_names_the_biggest_part_and_a_remedy(tmp_path: Path) -> None:
    """One document has 3,500 tokens, the others few; eager attention holds all its pairs."""
    (tmp_path / "config.json").write_text(
        json.dumps(TINY_CONFIG | {"max_position_embeddings": 4096})
    )
    rows = write_rows(
        tmp_path / "rows.jsonl",
        [*pairs(), {"prompt": "Say sea very often.", "response": "sea " * 3500}],
    )
    folder = tmp_path / "run"
    job = (
        "--model_config",
        tmp_path / "config.json",
        "--dataset_name",
        rows,
        "--max_length",
        4096,
        "--batch_size",
        2,
    )
    clock = (
        "--train_steps",
        20,
        "--save_steps",
        1,
        "--eval_strategy",
        "no",
        "--logging_steps",
        1,
        "--seed",
        1,
    )
    words = (
        LIMITED,
        ROOT,
        MAIN,
        "train",
        *job,
        *clock,
        "--attn_implementation",
        "eager",
        "--run_dir",
        folder,
    )
    command = [sys.executable, "-c", *map(str, words)]
    done = subprocess.run(
        command, env=child_env(), capture_output=True, text=True, timeout=patience(200), check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error[")]
    assert refusal((done.returncode, lines, ""))[:2] == (5, "memory")
    assert "Traceback" not in done.stderr
    assert "no room for 0.10 GB more; most goes to activations" in lines[0]
    advice = "attn_implementation sdpa; or batch_size 1 with gradient_accumulation_steps 2; or tokens_per_batch 4096."
    assert lines[0].endswith(f"Same effective batch with less memory: {advice}")
    result = json.loads((folder / "run.json").read_text())["result"]
    assert (result["outcome"], result["code"], result["error"]["field"]) == ("failed", 5, "memory")
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert load_model(str(last)).num_parameters() > 40_000
