"""Support of clusters: a SLURM script, run by stand-ins for SLURM, and accelerate configurations."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.support import ERROR, ROOT, patience, read_lines, start, wait_until

from plugin.base.errors import JobError
from plugin.config.params import SCHEMA, Params
from plugin.config.parse import parse
from plugin.run.asked import config_values
from plugin.run.folder import RunFolder
from plugin.worker.accelerate_env import take_launchers_choice

SCRIPT = ROOT / "examples" / "slurm.sh"
FAKES = {
    # Tells its own options apart from the command, and runs it as the node FAKE_NODE would.
    "srun": 'echo "$1" > "$SEEN/srun"; shift; SLURM_NODEID=$FAKE_NODE exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "node-a\\nnode-b\\n"; else echo "$@" > "$SEEN/scontrol"; fi',
    "python": 'for word in "$@"; do echo "$word"; done > "$SEEN/python.part"; mv "$SEEN/python.part" "$SEEN/python"; eval "$TRAIN"',
}
# A training that obeys STOP as ours does; a training that is done.
OBEDIENT = 'until [ -e "$RUN/STOP" ]; do sleep 0.05; done; printf \'  "outcome": "stopped",\' > "$RUN/run.json"'
DONE = 'printf \'  "outcome": "done",\' > "$RUN/run.json"'


@dataclass(frozen=True)
class Batch:
    """A job under way, and what its programs were called with."""

    program: subprocess.Popen[str]
    seen: Path

    def words(self, name: str) -> list[str]:
        return (self.seen / name).read_text().split("\n")[:-1]


@pytest.fixture
def sbatch(tmp_path: Path) -> Callable[..., Batch]:
    def submit(train: str, *arguments: str, nodes: int = 2, node: int = 0) -> Batch:
        fakes, seen, run = tmp_path / "bin", tmp_path / "seen", tmp_path / "run 1"
        for folder in (fakes, seen):
            folder.mkdir()
        for name, body in FAKES.items():
            (fakes / name).write_text(f"#!/bin/sh\n{body}\n")
            (fakes / name).chmod(0o755)
        env = {
            "PATH": f"{fakes}:{os.environ['PATH']}",
            "SEEN": str(seen),
            "RUN": str(run),
            "TRAIN": train,
        }
        env |= {
            "PYTHON": "python",
            "FAKE_NODE": str(node),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_NNODES": str(nodes),
        }
        env |= {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node-[a-b]"}
        command = ["bash", str(SCRIPT), str(run), *arguments]
        return Batch(subprocess.Popen(command, env=env, text=True), seen)

    return submit


def test_every_node_starts_one_parent_that_knows_its_place(
    sbatch: Callable[..., Batch], tmp_path: Path
) -> None:
    job = sbatch(DONE, "--config", "my file.yaml", "--train_steps", "9", node=1)
    assert job.program.wait(timeout=30) == 0
    words = job.words("python")
    assert words[:2] == ["main.py", "train"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given == {
        "--run_dir": str(tmp_path / "run 1"),
        "--resume": "true",
        "--config": "my file.yaml",
        "--train_steps": "9",
        "--num_machines": "2",
        "--main_process_ip": "node-a",
        "--main_process_port": "23456",
        "--machine_rank": "1",
    }
    assert {name.removeprefix("--") for name in given} - {"config"} <= set(SCHEMA)
    assert job.words("srun") == ["--kill-on-bad-exit=1"]
    assert not (job.seen / "scontrol").exists(), "a run that is done is not queued again"


def test_one_node_needs_no_address(sbatch: Callable[..., Batch]) -> None:
    job = sbatch(DONE, nodes=1)
    assert job.program.wait(timeout=30) == 0
    words = job.words("python")
    assert words[-2:] == ["--machine_rank", "0"]
    assert not {"--num_machines", "--main_process_ip", "--main_process_port"} & set(words)


def test_before_the_time_limit_the_run_stops_and_is_queued_again(
    sbatch: Callable[..., Batch],
) -> None:
    job = sbatch(OBEDIENT)
    wait_until((job.seen / "python").exists, "the training to begin", deadline_s=30)
    job.program.send_signal(signal.SIGUSR1)
    assert job.program.wait(timeout=30) == 0
    assert job.words("scontrol") == ["requeue 123456"]


def test_failed_run_keeps_its_exit_code_and_is_not_requeued(sbatch: Callable[..., Batch]) -> None:
    job = sbatch("exit 6")
    assert job.program.wait(timeout=30) == 6
    assert not (job.seen / "scontrol").exists()


def test_run_done_during_a_stop_request_is_not_requeued(sbatch: Callable[..., Batch]) -> None:
    job = sbatch(OBEDIENT.replace("stopped", "done"))
    wait_until((job.seen / "python").exists, "the training to begin", deadline_s=30)
    job.program.send_signal(signal.SIGUSR1)
    assert job.program.wait(timeout=30) == 0
    assert not (job.seen / "scontrol").exists()


def test_without_a_run_folder_the_script_says_how_it_is_used(sbatch: Callable[..., Batch]) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), "--config", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch examples/slurm.sh RUN_DIR")


# --- accelerate's launcher

CONFIGURED = {
    "accelerate_ddp": "MULTI_GPU",
    "accelerate_fsdp": "FSDP",
    "accelerate_deepspeed": "DEEPSPEED",
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_accelerate_reads_our_configurations(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "examples" / f"{name}.yaml"))
    assert (config.num_machines, config.num_processes, config.distributed_type.value) == (
        2,
        16,
        CONFIGURED[name],
    )
    assert json.loads(json.dumps(config.to_dict()))["main_process_port"] == 29500


def told(*words: str) -> dict[str, str]:
    """Return what accelerate's launcher, called with these words, adds to a worker's environment.

    It is read from the launcher's own code.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import launch

    ours = (
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--main_process_port",
        "0",
        "--mixed_precision",
        "no",
    )
    args = launch_command_parser().parse_args([*ours, *words, "-m", "plugin.worker", "RUN"])
    args, _, _ = _validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        _, env = launch.prepare_deepspeed_cmd_env(args)
    else:
        env = launch.prepare_multi_gpu_env(args)
    return {name: value for name, value in env.items() if os.environ.get(name) != value}


FSDP, FSDP_1, DEEPSPEED = (
    ("--use_fsdp", "--fsdp_version", "2"),
    ("--use_fsdp", "--fsdp_version", "1"),
    ("--use_deepspeed",),
)


STAGES = {"0": "ddp", "1": "zero2", "2": "zero2", "3": "zero3"}


def example(name: str) -> tuple[str, str]:
    return ("--config_file", str(ROOT / "examples" / f"accelerate_{name}.yaml"))


@pytest.mark.parametrize(
    ("words", "parallel"),
    [
        (example("fsdp"), "zero3"),
        (example("deepspeed"), "zero3"),
        (FSDP, "zero3"),
        ((*FSDP, "--fsdp_reshard_after_forward", "false"), "zero2"),
        (FSDP_1, "zero3"),
        ((*FSDP_1, "--fsdp_sharding_strategy", "SHARD_GRAD_OP"), "zero2"),
        ((*FSDP_1, "--fsdp_sharding_strategy", "3"), "ddp"),
        (DEEPSPEED, "zero2"),  # accelerate's own default
        *(((*DEEPSPEED, "--zero_stage", stage), parallel) for stage, parallel in STAGES.items()),
        ((*DEEPSPEED, "--gradient_accumulation_steps", "1", "--gradient_clipping", "1.0"), "zero2"),
    ],
)
def test_launcher_choice_becomes_parallel_and_leaves_environment(
    words: tuple[str, ...], parallel: str
) -> None:
    """The launcher's variables become `parallel` and are removed from the environment."""
    environ = told(*words)
    params, line = take_launchers_choice(Params(), environ)
    assert params == Params(parallel=parallel)
    assert re.fullmatch(rf"accelerate: (FSDP|DeepSpeed) .* is parallel {parallel} here; .*", line)
    assert not [
        name for name in environ if "FSDP" in name or "DEEPSPEED" in name or "GRADIENT" in name
    ]
    assert take_launchers_choice(Params(), environ) == (Params(), ""), (
        "nothing is left for accelerate to wrap by"
    )
    same = Params(parallel=parallel)
    assert take_launchers_choice(same, told(*words)) == (same, ""), "as chosen"


def test_launcher_that_shards_nothing_is_not_logged() -> None:
    for words in (example("ddp"), ("--multi_gpu",)):
        environ = told(*words)
        assert take_launchers_choice(Params(parallel="zero2"), environ) == (
            Params(parallel="zero2"),
            "",
        )
    assert take_launchers_choice(Params(parallel="fsdp2"), told(*FSDP))[0].parallel == "fsdp2", (
        "another word for zero3"
    )


@pytest.mark.parametrize(("mixed", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_the_launchers_precision_is_taken_where_dtype_is_auto(mixed: str, dtype: str) -> None:
    environ = told("--multi_gpu", "--mixed_precision", mixed)
    chosen = Params(dtype=dtype)
    assert take_launchers_choice(Params(), environ) == (
        chosen,
        f"accelerate: mixed_precision {mixed} is dtype {dtype} here",
    )
    assert take_launchers_choice(chosen, environ) == (chosen, ""), "as chosen"


NEEDS_CLASSES = ("--deepspeed_moe_layer_cls_names", "Experts")


@pytest.mark.parametrize(
    ("words", "values", "named"),
    [
        (
            FSDP,
            {"parallel": "ddp"},
            ("fsdp_reshard_after_forward true", "zero3", "with parallel ddp"),
        ),
        (
            (*DEEPSPEED, "--zero_stage", "2"),
            {"parallel": "zero3"},
            ("zero_stage 2", "zero2", "with parallel zero3"),
        ),
        (
            (
                *FSDP,
                *("--fsdp_offload_params", "true"),
                *("--fsdp_activation_checkpointing", "true"),
                "--dynamo_backend",
                "inductor",
            ),
            {"parallel": "zero2"},
            (
                "fsdp_offload_params true",
                "fsdp_activation_checkpointing (recompute",
                "dynamo_backend",
                "with parallel zero2",
            ),
        ),
        (
            (*FSDP_1, "--fsdp_sharding_strategy", "HYBRID_SHARD"),
            {},
            ("fsdp_sharding_strategy HYBRID_SHARD",),
        ),
        (
            (
                *DEEPSPEED,
                "--offload_optimizer_device",
                "cpu",
                "--offload_param_device",
                "nvme",
                *NEEDS_CLASSES,
            ),
            {},
            (
                "offload_optimizer_device cpu",
                "offload_param_device nvme",
                "deepspeed_moe_layer_cls_names Experts",
            ),
        ),
        (
            (*DEEPSPEED, "--deepspeed_config_file", "ds.json", "--zero_stage", "4"),
            {},
            ("deepspeed_config_file ds.json", "stage 4"),
        ),
        (
            (*DEEPSPEED, "--gradient_accumulation_steps", "4", "--gradient_clipping", "0.5"),
            {"gradient_accumulation_steps": 2},
            ("gradient_accumulation_steps 4 with 2", "gradient_clipping 0.5 with 1.0"),
        ),
        (("--use_megatron_lm",), {}, ("use_megatron_lm true",)),
        ((*FSDP, "--use_parallelism_config"), {}, ("use_parallelism_config true",)),
        (FSDP, {"optim": "adamw_8bit"}, ("zero3 with adamw_8bit",)),
        (
            ("--multi_gpu", "--mixed_precision", "bf16"),
            {"dtype": "float32"},
            ("mixed_precision bf16 with dtype float32",),
        ),
        (
            ("--multi_gpu", "--mixed_precision", "fp16"),
            {"dtype": "bfloat16"},
            ("mixed_precision fp16 with dtype bfloat16",),
        ),
    ],
)
def test_unsupported_launcher_options_are_refused_together(
    words: tuple[str, ...], values: dict[str, Any], named: tuple[str, ...]
) -> None:
    environ = told(*words)
    before = dict(environ)
    with pytest.raises(
        JobError, match="parallel: expected what this program can do of accelerate's configuration"
    ) as caught:
        take_launchers_choice(Params(**values), environ)
    (problem,) = caught.value.problems
    assert problem.code == 2
    assert [words for words in named if words not in problem.got] == []
    assert environ == before


def test_worker_of_another_launcher_reports_why_it_ends(tmp_path: Path) -> None:
    """Without our parent the worker itself reports the error."""
    (tmp_path / "run.json").write_text(
        json.dumps({"params": Params(dataset_name="d", model_name="m").as_json()})
    )
    with start(
        [sys.executable, "-m", "plugin.worker", tmp_path],
        cwd=ROOT,
        env=told(*FSDP, "--fsdp_offload_params", "true"),
    ) as worker:
        _, err = worker.communicate(timeout=patience(120))
    assert worker.returncode == 2
    (line,) = [line for line in err.splitlines() if ERROR.match(line)]
    assert line.startswith(
        "error[2]: parallel: expected what this program can do of accelerate's configuration, got fsdp_offload"
    )
    (event,) = [
        event for event in read_lines(tmp_path / "events.jsonl") if event["type"] == "failed"
    ]
    assert event["error"]["field"] == "parallel"


def test_a_launchers_choice_is_recorded_and_repeated(
    tiny_config: Path, pairs_file: Path, tmp_path: Path
) -> None:
    values = {
        "model_config": str(tiny_config),
        "dataset_name": str(pairs_file),
        "max_length": 64,
        "train_device": "cpu",
        "train_steps": 1,
        "eval_strategy": "no",
        "fuse_model": False,
    }
    params = Params.model_validate(values).as_json()
    (tmp_path / "run.json").write_text(json.dumps({"params": params}))
    with start(
        [sys.executable, "-m", "plugin.worker", tmp_path],
        cwd=ROOT,
        env={"ACCELERATE_MIXED_PRECISION": "bf16"},
    ) as worker:
        _, err = worker.communicate(timeout=240)
    assert worker.returncode == 0, err
    record = RunFolder(tmp_path).read_run()
    assert record.params == params
    assert record.result
    assert (record.result.outcome, record.result.code) == ("done", 0)
    assert record.result.effective == {"dtype": "bfloat16"}
    again = config_values(str(tmp_path / "run.json"))
    assert parse({**again}).params == Params.model_validate({**values, "dtype": "bfloat16"})


def test_strategy_of_accelerate_alone_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has no such strategy: the test empties the allowed kinds, so that its own is refused."""
    from accelerate.state import AcceleratorState

    from plugin.worker import rendezvous

    AcceleratorState._reset_state(reset_partial_state=True)
    assert rendezvous.join_ranks("no", on_cpu=True).num_processes == 1
    monkeypatch.setattr(rendezvous, "REPLICATED", ())
    with pytest.raises(
        JobError,
        match=r"parallel: expected accelerate's plain DDP, because this program shards the model itself, got NO",
    ) as caught:
        rendezvous.join_ranks("no", on_cpu=True)
    assert caught.value.code == 2
