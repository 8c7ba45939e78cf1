"""What we offer to clusters: a SLURM script, tried with programs of ours in SLURM's place, and a configuration for accelerate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, wait_until

from plugin.job import JobError
from plugin.parse import SCHEMA

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
        env = {"PATH": f"{fakes}:{os.environ['PATH']}", "SEEN": str(seen), "RUN": str(run), "TRAIN": train}
        env |= {"PYTHON": "python", "FAKE_NODE": str(node), "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_NNODES": str(nodes)}
        env |= {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node-[a-b]"}
        command = ["bash", str(SCRIPT), str(run), *arguments]
        return Batch(subprocess.Popen(command, env=env, text=True), seen)

    return submit


def test_every_node_starts_one_parent_that_knows_its_place(sbatch: Callable[..., Batch], tmp_path: Path) -> None:
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


def test_before_the_time_limit_the_run_stops_and_is_queued_again(sbatch: Callable[..., Batch]) -> None:
    job = sbatch(OBEDIENT)
    wait_until((job.seen / "python").exists, "the training to begin", deadline_s=30)
    job.program.send_signal(signal.SIGUSR1)
    assert job.program.wait(timeout=30) == 0
    assert job.words("scontrol") == ["requeue 123456"]


def test_a_run_that_fails_keeps_its_exit_code_and_is_not_queued_again(sbatch: Callable[..., Batch]) -> None:
    job = sbatch("exit 6")
    assert job.program.wait(timeout=30) == 6
    assert not (job.seen / "scontrol").exists()


def test_a_run_that_is_done_while_it_is_asked_to_stop_is_not_queued_again(sbatch: Callable[..., Batch]) -> None:
    job = sbatch(OBEDIENT.replace("stopped", "done"))
    wait_until((job.seen / "python").exists, "the training to begin", deadline_s=30)
    job.program.send_signal(signal.SIGUSR1)
    assert job.program.wait(timeout=30) == 0
    assert not (job.seen / "scontrol").exists()


def test_without_a_run_folder_the_script_says_how_it_is_used(sbatch: Callable[..., Batch]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), "--config", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch examples/slurm.sh RUN_DIR")


def test_accelerate_reads_our_configuration() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "examples" / "accelerate_ddp.yaml"))
    assert (config.num_machines, config.num_processes, config.distributed_type.value) == (2, 16, "MULTI_GPU")
    assert json.loads(json.dumps(config.to_dict()))["main_process_port"] == 29500


def test_a_model_that_accelerate_would_cut_up_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CPU runs FSDP, so what is allowed is taken away instead: this process's own kind is then the one refused."""
    from accelerate.state import AcceleratorState

    from plugin import rendezvous

    AcceleratorState._reset_state(reset_partial_state=True)
    assert rendezvous.join_ranks("no", on_cpu=True).num_processes == 1
    monkeypatch.setattr(rendezvous, "REPLICATED", ())
    with pytest.raises(JobError, match=r"parallel: expected a model that this program itself cuts up, got NO") as caught:
        rendezvous.join_ranks("no", on_cpu=True)
    assert caught.value.code == 2
