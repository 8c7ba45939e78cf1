"""Which GPUs and which processes: pure functions, tried with invented machines."""

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
    resolve_gpus,
    visible_gpus,
)

FOUR = "".join(
    f"GPU {n}: NVIDIA H200 (UUID: GPU-{n}aaaaaaa-0000-1111-2222-333333333333)\n" for n in range(4)
)
SLICED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0bbbbbbb-0000-1111-2222-333333333333)
  MIG 3g.20gb     Device  0: (UUID: MIG-11111111-aaaa-bbbb-cccc-dddddddddddd)
  MIG 3g.20gb     Device  1: (UUID: MIG-22222222-aaaa-bbbb-cccc-dddddddddddd)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1bbbbbbb-0000-1111-2222-333333333333)
"""
GPU_0, GPU_2 = (
    "GPU-0aaaaaaa-0000-1111-2222-333333333333",
    "GPU-2aaaaaaa-0000-1111-2222-333333333333",
)
MIG_1, MIG_2 = (
    "MIG-11111111-aaaa-bbbb-cccc-dddddddddddd",
    "MIG-22222222-aaaa-bbbb-cccc-dddddddddddd",
)
RUN = Path("/runs/one")


def visible(chosen: str | None, listing: str = FOUR) -> list[str]:
    return visible_gpus({} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}, lambda: listing)


def resolve(seen: list[str], **values: object) -> tuple[str, ...]:
    return resolve_gpus(Params(**values), seen)


def refused(seen: list[str], **values: object) -> list[tuple[str, str]]:
    with pytest.raises(JobError) as caught:
        resolve(seen, **values)
    assert caught.value.code == 2
    return [(problem.field, str(problem)) for problem in caught.value.problems]


def plan(
    gpus: tuple[str, ...] = (), environ: dict[str, str] | None = None, **values: object
) -> LaunchPlan:
    return plan_launch(Params(**values), RUN, gpus, 29_555, environ or {})


# --- what CUDA would show


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (None, ["0", "1", "2", "3"]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("2", ["2"]),
        ("3,1", ["3", "1"]),
        (" 0 , 2 ", ["0", "2"]),
        ("0,9,1", ["0"]),  # as in CUDA, the first unknown one ends the list
        ("7", []),
        ("0,-1,1", ["0"]),
        (f"{GPU_2},{GPU_0}", [GPU_2, GPU_0]),
        ("GPU-2aaa", ["GPU-2aaa"]),  # CUDA takes the beginning of a name
    ],
)
def test_visible_gpus_are_those_of_cuda(chosen: str | None, names: list[str]) -> None:
    assert visible(chosen) == names


def test_a_name_this_machine_does_not_have_ends_the_list() -> None:
    assert visible(f"{GPU_0},GPU-99999999-0000-1111-2222-333333333333,1") == [GPU_0]
    assert visible("MIG-99999999-aaaa-bbbb-cccc-dddddddddddd", SLICED) == []


def test_a_gpu_cut_into_slices_is_reached_through_them() -> None:
    assert visible(None, SLICED) == [MIG_1, MIG_2, "1"]
    assert visible(MIG_2, SLICED) == [MIG_2]


@pytest.mark.parametrize(
    "listing",
    ["", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"],
)
def test_a_machine_without_a_driver_has_no_gpu(listing: str) -> None:
    assert visible(None, listing) == []
    assert visible("0", listing) == []
    assert visible(GPU_0, listing) == []


# --- what the job takes of it


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, ("0", "1", "2", "3")),
        ({"train_device": "cuda"}, ("0", "1", "2", "3")),
        ({"train_device": "cpu"}, ()),
        ({"gpu_ids": "0,2"}, ("0", "2")),
        ({"gpu_ids": "3 , 0"}, ("3", "0")),
        ({"gpu_ids": "1", "train_device": "cuda"}, ("1",)),
    ],
)
def test_gpus_of_a_job_on_a_machine_with_four(
    values: dict[str, object], names: tuple[str, ...]
) -> None:
    assert resolve(["0", "1", "2", "3"], **values) == names


def test_positions_count_the_visible_gpus_as_torch_does() -> None:
    assert resolve(["3", "1"], gpu_ids="0") == ("3",)
    assert resolve([GPU_2, GPU_0], gpu_ids="1,0") == (GPU_0, GPU_2)
    assert refused(["3", "1"], gpu_ids="3")[0][0] == "gpu_ids"


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert resolve([]) == ()
    ((field, text),) = refused([], train_device="cuda")
    assert field == "train_device"
    assert "none is visible" in text


@pytest.mark.parametrize(
    ("seen", "ids", "words"),
    [
        ([], "0", "0; this machine has no GPU"),
        (["0"], "1", "1; this machine has GPU 0"),
        (["0", "1", "2", "3"], "4", "4; this machine has GPUs 0-3"),
        (["0", "1"], "0,5,7", "5, 7; this machine has GPUs 0-1"),
    ],
)
def test_an_absent_gpu_is_named_with_what_is_there(seen: list[str], ids: str, words: str) -> None:
    ((field, text),) = refused(seen, gpu_ids=ids)
    assert field == "gpu_ids"
    assert words in text


def test_duplicates_and_absent_ids_are_reported_together() -> None:
    problems = refused(["0", "1"], gpu_ids="0,0,9")
    assert [field for field, _ in problems] == ["gpu_ids", "gpu_ids"]
    assert "9;" in problems[0][1]
    assert "0 more than once" in problems[1][1]


def test_ids_on_a_cpu_contradict_it() -> None:
    assert [field for field, _ in refused([], train_device="cpu", gpu_ids="0")] == ["gpu_ids"]


def test_slices_do_not_train_together() -> None:
    assert resolve([MIG_1, MIG_2]) == (MIG_1,)
    assert resolve([MIG_1, MIG_2], gpu_ids="1") == (MIG_2,)
    assert [field for field, _ in refused([MIG_1, MIG_2], gpu_ids="0,1")] == ["gpu_ids"]


# --- the plan


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


def test_fewer_processes_use_the_first_gpus_and_more_are_refused() -> None:
    assert plan(("0", "1", "2"), num_processes=2).gpus == ("0", "1")
    with pytest.raises(JobError, match="num_processes") as caught:
        plan(("0", "1"), num_processes=3)
    assert caught.value.code == 2


def test_the_equal_accelerate_command_is_one_that_accelerate_takes() -> None:
    """accelerate refuses --multi_gpu beside --cpu, and starts one process with --cpu."""
    assert (
        plan().accelerate == "accelerate launch --num_processes 1 --cpu -m plugin.worker /runs/one"
    )
    assert (
        plan(num_processes=2).accelerate
        == "accelerate launch --multi_gpu --num_processes 2 -m plugin.worker /runs/one"
    )
    two = "accelerate launch --multi_gpu --num_processes 2 --gpu_ids 0,2 -m plugin.worker /runs/one"
    assert plan(("0", "2")).accelerate == two


def test_the_equal_accelerate_command_starts_every_process(tmp_path: Path) -> None:
    """By itself, with a program in the worker's place that says which of them it is."""
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
def test_ranks_on_a_cpu_have_a_malloc_that_joins_its_holes_unless_told_otherwise(
    theirs: str, ours: str
) -> None:
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


def test_the_equal_accelerate_command_names_every_machine() -> None:
    machine = plan_launch(Params(**MACHINES, machine_rank=1), RUN, ("0", "1"), 4321, {})
    words = "--num_processes 6 --num_machines 3 --machine_rank 1 --main_process_ip 10.0.0.5 --main_process_port 4321"
    command = f"accelerate launch --multi_gpu {words} --gpu_ids 0,1 -m plugin.worker /runs/one"
    assert machine.accelerate == command


def test_other_machines_have_a_folder_of_their_own_in_the_run_folder() -> None:
    assert machine_dir(Params(), RUN) == RUN
    assert machine_dir(Params(num_machines=2, machine_rank=1), RUN) == RUN / "machine-1"


def test_what_several_machines_need_is_refused_all_at_once() -> None:
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
