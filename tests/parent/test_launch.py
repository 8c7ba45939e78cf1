"""Launch plan of a job, on invented machines."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path

import pytest
from helpers.support import patience, start

from plugin.base.errors import JobError
from plugin.base.process import ROOT
from plugin.config.params import Params
from plugin.config.parse import parse
from plugin.parent.launch import (
    LaunchPlan,
    listen,
    machine_dir,
    plan_launch,
)

RUN = Path("/runs/one")


def plan(
    gpus: tuple[str, ...] = (), environ: dict[str, str] | None = None, **values: object
) -> LaunchPlan:
    return plan_launch(Params(**values), RUN, gpus, 29_555, environ or {})


def test_the_plan_is_pure() -> None:
    assert plan(("0", "2")) == plan(("0", "2"))
    before = dict(os.environ)
    plan(("0",), {"PYTHONPATH": "/else"}, num_proc=3)
    assert dict(os.environ) == before


def test_the_command_is_the_worker_module_of_this_interpreter() -> None:
    assert plan().argv == (sys.executable, "-P", "-m", "plugin.worker", "/runs/one")


def test_one_process_on_a_cpu() -> None:
    one = plan(num_proc=3)
    assert one.gpus == ()
    (env,) = one.ranks
    assert env["ACCELERATE_USE_CPU"] == "true"
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["RAYON_NUM_THREADS"] == "3"
    assert env["PYTHONPATH"] == str(ROOT)
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & set(env)


def test_two_processes_on_a_cpu_share_it() -> None:
    ranks = plan(num_processes=2).ranks
    assert [(env["RANK"], env["LOCAL_RANK"]) for env in ranks] == [("0", "0"), ("1", "1")]
    for env in ranks:
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == ("2", "2")
        assert not {"MASTER_ADDR", "MASTER_PORT"} & set(env), "they meet in a file"
        assert int(env["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)


def test_the_users_threads_and_path_are_kept() -> None:
    (env,) = plan(environ={"OMP_NUM_THREADS": "7", "PYTHONPATH": "/mine"}).ranks
    assert env["OMP_NUM_THREADS"] == "7"
    assert env["PYTHONPATH"] == f"{ROOT}{os.pathsep}/mine"


def test_one_process_a_gpu() -> None:
    made = plan(("1", "3"))
    assert made.gpus == ("1", "3")
    assert [env["LOCAL_RANK"] for env in made.ranks] == ["0", "1"]
    for env in made.ranks:
        assert env["CUDA_VISIBLE_DEVICES"] == "1,3"
        assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert not {"ACCELERATE_USE_CPU", "OMP_NUM_THREADS"} & set(env)


def test_fewer_processes_use_the_first_gpus_more_are_refused() -> None:
    assert plan(("0", "1", "2"), num_processes=2).gpus == ("0", "1")
    with pytest.raises(JobError, match="num_processes") as caught:
        plan(("0", "1"), num_processes=3)
    assert caught.value.code == 2


def test_the_accelerate_command_has_valid_options() -> None:
    """accelerate refuses --multi_gpu with --cpu, and starts one process with --cpu."""
    assert (
        plan().accelerate == "accelerate launch --num_processes 1 --cpu -m plugin.worker /runs/one"
    )
    assert (
        plan(num_processes=2).accelerate
        == "accelerate launch --multi_gpu --num_processes 2 -m plugin.worker /runs/one"
    )
    two = "accelerate launch --multi_gpu --num_processes 2 --gpu_ids 0,2 -m plugin.worker /runs/one"
    assert plan(("0", "2")).accelerate == two


@pytest.mark.end_to_end
def test_the_accelerate_command_starts_every_process(tmp_path: Path) -> None:
    """Run by accelerate, with a program in the worker's place that writes its rank."""
    words = shlex.split(plan(num_processes=2).accelerate)
    assert words[0] == "accelerate"
    assert words[-3:] == ["-m", "plugin.worker", "/runs/one"]
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys; open(sys.argv[1] + os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'])"
    )
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        *words[1:-3],
        str(program),
        f"{tmp_path}/rank-",
    ]
    with start(
        launch, env={"HF_HOME": str(tmp_path)}
    ) as launcher:  # whatever the user of this machine has configured
        _, err = launcher.communicate(timeout=patience(120))
    assert launcher.returncode == 0, err
    assert {path.name: path.read_text() for path in tmp_path.glob("rank-*")} == {
        "rank-0": "2",
        "rank-1": "2",
    }


def test_the_plan_as_json_holds_every_process() -> None:
    shown = plan(("0", "1")).as_json()
    assert (shown["processes"], shown["gpus"]) == (2, ["0", "1"])
    assert [rank["RANK"] for rank in shown["ranks"]] == ["0", "1"]


# --- where the ranks meet


def test_listen_of_several_machines_holds_its_port() -> None:
    with contextlib.ExitStack() as opened:
        listeners = [listen(Params(num_machines=2)) for _ in range(5)]
        for listener in listeners:
            assert listener is not None
            opened.enter_context(listener)
            port = listener.getsockname()[1]
            with pytest.raises(JobError, match="main_process_port: expected a free port") as caught:
                listen(Params(num_machines=2, main_process_port=port))
            assert caught.value.code == 2
        assert len({listener.getsockname()[1] for listener in listeners if listener}) == 5


@pytest.mark.parametrize("values", [{"num_processes": 2}, {"num_machines": 2, "machine_rank": 1}])
def test_listen_where_nobody_serves_opens_nothing(values: dict[str, int]) -> None:
    assert listen(Params(**values)) is None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("", "glibc.malloc.tcache_count=0"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.tcache_count=0"),
        ("glibc.malloc.tcache_count=9", "glibc.malloc.tcache_count=9"),
    ],
)
def test_cpu_ranks_switch_off_mallocs_cache_of_small_blocks(theirs: str, ours: str) -> None:
    for rank in plan_launch(
        Params(num_processes=2), RUN, (), 4321, {"GLIBC_TUNABLES": theirs}
    ).ranks:
        assert rank["GLIBC_TUNABLES"] == ours
    (rank,) = plan_launch(Params(), RUN, ("0",), 4321, {}).ranks
    assert "GLIBC_TUNABLES" not in rank


# --- several machines

MACHINES: dict[str, object] = {
    "num_machines": 3,
    "main_process_ip": "10.0.0.5",
    "main_process_port": 4321,
}


def test_machines_count_their_ranks_one_after_the_other() -> None:
    ranks = plan_launch(
        Params(**MACHINES, machine_rank=2, num_processes=2), RUN, (), 4321, {}
    ).ranks
    assert [(env["RANK"], env["LOCAL_RANK"]) for env in ranks] == [("4", "0"), ("5", "1")]
    for env in ranks:
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == ("6", "2")
        assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("10.0.0.5", "4321")
        assert "GLOO_SOCKET_IFNAME" not in env, "several machines meet in the network"


def test_one_process_a_machine_is_still_one_of_several() -> None:
    (env,) = plan_launch(Params(**MACHINES, machine_rank=1), RUN, (), 4321, {}).ranks
    assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) == ("1", "0", "3")


def test_the_accelerate_command_names_every_machine() -> None:
    machine = plan_launch(Params(**MACHINES, machine_rank=1), RUN, ("0", "1"), 4321, {})
    words = "--num_processes 6 --num_machines 3 --machine_rank 1 --main_process_ip 10.0.0.5 --main_process_port 4321"
    command = f"accelerate launch --multi_gpu {words} --gpu_ids 0,1 -m plugin.worker /runs/one"
    assert machine.accelerate == command


def test_other_machines_have_folders_in_the_run_folder() -> None:
    assert machine_dir(Params(), RUN) == RUN
    assert machine_dir(Params(num_machines=2, machine_rank=1), RUN) == RUN / "machine-1"


def test_mistakes_of_several_machines_are_reported_together() -> None:
    with pytest.raises(JobError) as caught:
        parse({"dataset_name": "d", "model_name": "m", "num_machines": 2, "machine_rank": 2})
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["machine_rank", "main_process_port", "main_process_ip"]
    good = {
        **MACHINES,
        "main_process_ip": "127.0.0.2",
        "machine_rank": 1,
        "dataset_name": "d",
        "model_name": "m",
    }
    assert parse(good).params.machine_rank == 1
