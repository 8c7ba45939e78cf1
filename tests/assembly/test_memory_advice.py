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
from helpers.tiny import tiny_config as tiny_shape

from plugin import cli
from plugin.assembly import memory as planning
from plugin.assembly import resolve as resolving
from plugin.assembly.attention import choose_compile
from plugin.assembly.memory import MemoryPlan, choose_recompute
from plugin.assembly.memory_advice import cheaper_settings, check_memory
from plugin.assembly.model import model_shape
from plugin.assembly.packed.packs import pack_tokens
from plugin.base.errors import Code, JobError, Problem
from plugin.config.params import Params
from plugin.config.parse import parse
from plugin.models.load import load_model
from plugin.parent import check as parent_check
from plugin.training import memory
from plugin.training.activation_checkpointing import FULL, NONE, Recompute
from plugin.training.memory import KINDS, Memory, free_bytes
from plugin.worker import check as trial
from plugin.worker.out_of_memory import is_out_of_memory

GB = 10**9
LAYERS = 32
NEEDS = {"none": 10 * GB, "selective": 6 * GB, "full": 3 * GB}


def need(peak: int, **kinds: int) -> Memory:
    return Memory(**{**dict.fromkeys(KINDS, 0), **kinds}, heap=0, peak=peak)


# --- recomputation


class Estimates:
    """Estimates of a model of LAYERS layers, the last of which frees little, and those asked for.

    `bend`: by how much the curve of `full` in the first layers sags (or rises, where it is negative)
    below the line between none and full, as a share of their difference.
    """

    def __init__(self, bend: float = 0.0):
        self.bend, self.asked = bend, list[Recompute]()

    def peak(self, recompute: Recompute) -> int:
        if recompute.layers is None:
            return NEEDS[recompute.mode]
        share = recompute.layers / (LAYERS - 0.5)
        share += 4 * self.bend * share * (1 - share)
        return round(NEEDS["none"] + share * (NEEDS["full"] - NEEDS["none"]))

    def __call__(self, recompute: Recompute) -> Memory:
        self.asked.append(recompute)
        return need(self.peak(recompute))

    def plan(self, room: float, *, compiles: bool) -> MemoryPlan:
        return choose_recompute(self, int(room * GB), LAYERS, compiles=compiles)


@pytest.mark.parametrize(
    ("room", "compiles", "chosen"),
    [
        (20, False, "none"),
        (10 / memory.ROOM + 0.01, True, "none"),
        (10, False, "selective"),
        (10, True, "full in the first 4 layers"),
        (5, False, "full in the first 25 layers"),
        (3.1 / memory.ROOM, True, "full"),
        (1, False, "full"),
        (1, True, "full"),
    ],
)
def test_auto_recomputes_as_little_as_fits(room: float, compiles: bool, chosen: str) -> None:
    estimates = Estimates()
    plan = estimates.plan(room, compiles=compiles)
    assert str(plan.recompute) == chosen
    assert plan.memory.peak == estimates.peak(plan.recompute)
    tried = ["none"] if compiles or chosen == "none" else ["none", "selective"]
    figures = [f"{mode} needs about {NEEDS[mode] / GB:.2f} GB" for mode in tried]
    if chosen not in tried:
        figures.append(f"{chosen} needs about {plan.memory.peak / GB:.2f} GB")
    assert plan.why == f"{', '.join(figures)}; {int(room * GB) / GB:.2f} GB are free"


@pytest.mark.parametrize("bend", [0.0, 0.06, -0.06])
def test_fewest_layers_are_found_in_few_estimates(bend: float) -> None:
    counts = list[int]()
    for tenths in range(31, 100):
        estimates = Estimates(bend)
        limit = tenths * GB / 10
        plan = estimates.plan(limit / memory.ROOM / GB + 1e-6, compiles=True)
        fitting = (
            number
            for number in range(1, LAYERS)
            if estimates.peak(Recompute("full", number)) <= limit
        )
        assert plan.recompute.layers == next(fitting, None), limit
        assert len(set(estimates.asked)) == len(estimates.asked)
        counts.append(len(estimates.asked))
    assert max(counts) <= 6
    assert sum(counts) / len(counts) < 5


def test_what_is_asked_for_is_done_whatever_the_room() -> None:
    config = tiny_shape("llada")
    setting = memory.Setting(torch.device("cpu"), torch.float32, "loop", "adamw", False)
    for mode in NEEDS:
        params, batch = Params(recompute=mode), memory.documents_of(40, 20)
        plan = planning.plan_memory(params, config, batch, setting, 1, compiles=False)
        assert (plan.recompute, plan.why) == (Recompute(mode), "as chosen")


@pytest.mark.parametrize("compiles", [True, False])
def test_estimate_of_a_model_chooses_the_fewest_layers(compiles: bool) -> None:
    """The room lies between what selective (or none) and full need."""
    config = tiny_shape("llada", num_hidden_layers=6, hidden_size=32, intermediate_size=64)
    setting = memory.Setting(torch.device("cpu"), torch.float32, "loop", "adamw", False)
    batch = memory.documents_of(600, 20)

    def peak(recompute: Recompute) -> int:
        model, _ = model_shape(Params(), config, torch.float32)
        return memory.estimate(model, batch, setting, recompute).peak

    before = peak(Recompute("none" if compiles else "selective"))
    room = round((0.4 * before + 0.6 * peak(Recompute("full"))) / memory.ROOM)
    plan = planning.plan_memory(Params(), config, batch, setting, room, compiles=compiles)
    number = plan.recompute.layers
    assert number
    assert 1 < number < 6
    assert plan.memory.peak == peak(plan.recompute) <= memory.ROOM * room
    assert peak(Recompute("full", number - 1)) > memory.ROOM * room


def test_compiled_layers_are_refused_selective_recomputation() -> None:
    with pytest.raises(JobError, match="recompute") as caught:
        parse({"dataset_name": "d", "model_name": "m", "compile": "on", "recompute": "selective"})
    assert caught.value.code == Code.CONFIGURATION


def test_auto_compiles_no_layers_checkpointed_selectively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selective checkpointing keeps single operations, which a compiled layer does not show."""
    monkeypatch.setattr("plugin.assembly.attention._why_no_compile", lambda device: "")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    chosen = {mode: choose_compile(Params(recompute=mode), cuda) for mode in ("auto", *NEEDS)}
    assert [mode for mode, choice in chosen.items() if not choice.value] == ["selective"]
    assert "selective" in chosen["selective"].why
    assert choose_compile(Params(), cpu).value is False
    assert choose_compile(Params(compile="on"), cpu).value is True
    assert choose_compile(Params(compile="off"), cuda).value is False


def test_compile_on_without_a_compiler_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(JobError) as caught:
        choose_compile(Params(compile="on"), torch.device("cpu"))
    (problem,) = caught.value.problems
    assert (problem.field, problem.code) == ("compile", 2)
    assert "g++" in problem.got
    assert choose_compile(Params(), torch.device("cpu"))[0] is False


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
    MemoryPlan(NONE, need(9 * GB, activations=8 * GB, weights=GB), ""),
    MemoryPlan(Recompute("full", 4), need(9 * GB, activations=8 * GB, weights=GB), ""),
    MemoryPlan(FULL, need(9 * GB, optimizer=6 * GB, weights=3 * GB), ""),
)


@pytest.mark.parametrize("plan", PLANS, ids=["unknown", "activations", "some layers", "states"])
def test_advice_is_a_valid_job_with_equal_effective_batch(plan: MemoryPlan | None) -> None:
    for params in jobs():
        if plan and params.recompute not in ("auto", str(plan.recompute)):
            continue  # no plan of that job
        settings = cheaper_settings(params, plan)
        assert len(settings) == len(set(settings)) <= 3
        for setting in settings:
            other = applied(params, setting)
            assert other != params, setting
            assert effective_batch(other) == effective_batch(params), (setting, params)
            if plan and plan.recompute == FULL:
                assert "recompute" not in setting, "it is what did not fit"


def test_advice_fits_what_is_biggest() -> None:
    params = parse({"dataset_name": "d", "model_name": "m", "batch_size": 8}).params
    _, grown, partly, heavy = PLANS
    assert cheaper_settings(params, grown) == [
        "batch_size 4 with gradient_accumulation_steps 2",
        "tokens_per_batch 2048",
        "recompute full",
    ]
    assert "recompute full" in cheaper_settings(params, partly)
    assert cheaper_settings(params, heavy)[:2] == ["optim adamw_8bit", "lora true"]


def test_far_too_little_room_is_exit_5_and_names_the_biggest() -> None:
    params = parse({"dataset_name": "d", "model_name": "m", "batch_size": 8}).params
    plan = MemoryPlan(NONE, need(10 * GB, weights=2 * GB, activations=7 * GB), "")
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


@pytest.mark.parametrize("compile", ["on", "off"])
def test_memory_is_planned_with_the_choice_of_compile(
    compile: str, check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def plan(*_: Any, compiles: bool) -> MemoryPlan:
        seen.append(compiles)
        raise JobError(Problem("memory", "a plan", "none", "This ends the check."))

    monkeypatch.setattr(resolving, "plan_memory", plan)
    assert "This ends the check." in check("--compile", compile)[2]
    assert seen == [compile == "on"]


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
