"""Runs of several ranks and machines: two simultaneous jobs, a hang, and keys in a failed run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from faults.forks import Forks
from helpers.scenes import ENDLESS, LONGEST_S, Scene
from helpers.support import (
    ERROR,
    MAIN,
    is_running,
    pairs,
    patience,
    run_main,
    start,
    wait_until,
    write_rows,
)

HANG_S = 15  # more than a forked rank needs to load on a busy machine
FIRST_MACHINE = "10.77.0.1"
KEYS = {
    "HF_TOKEN": "hf_" + "Zy9" * 12,
    "WANDB_API_KEY": "fedcba98" * 5,
    "MY_SECRET": 'Tr0ub4dor&3 "quoted"',
}


def hangs_beside_another(
    forks: Forks, root: Path, hang: tuple[object, ...], two: tuple[object, ...]
) -> tuple[Scene, Scene]:
    """Return an endless run of two ranks that hangs, and another that ended while it trained.

    Rank 1 of the first stands still, as if it waited for a lost disk; rank 0 waits in a collective.
    """

    def steps() -> int:
        progress = hung.folder / "progress.json"
        return json.loads(progress.read_text())["step"] if progress.exists() else 0

    hung = forks.start(root / "hang" / "run", *hang, *ENDLESS)
    wait_until(lambda: steps() >= 2, "two steps", deadline_s=LONGEST_S)
    beside = forks.run(root / "link" / "two", *two)
    ranks, before, began = hung.ranks(), steps(), time.monotonic()
    wait_until(lambda: steps() > before, "steps while both ran and after", deadline_s=LONGEST_S)
    os.kill(ranks[1], signal.SIGSTOP)
    ended = hung.wait()
    ended.seen.update(
        took_s=time.monotonic() - began, left=[pid for pid in ranks if is_running(pid)]
    )
    return ended, beside


def ip(*words: object) -> bool:
    return (
        bool(shutil.which("ip"))
        and subprocess.run(["ip", *map(str, words)], capture_output=True, check=False).returncode
        == 0
    )


@contextmanager
def two_networks() -> Iterator[list[tuple[str, ...]]]:
    """Yield the command prefixes of both ends of a cable, empty where it is forbidden.

    The ends lie in namespaces that share no other network.
    """
    names = [f"trainer-{os.getpid()}-{number}" for number in range(2)]
    try:
        laid = all(ip("netns", "add", name) for name in names)
        laid = laid and ip(
            "link",
            "add",
            "cable",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            names[1],
        )
        for number, name in enumerate(names):
            laid = laid and ip(
                "-n", name, "addr", "add", f"{FIRST_MACHINE[:-1]}{number + 1}/24", "dev", "cable"
            )
            laid = laid and all(
                ip("-n", name, "link", "set", link, "up") for link in ("lo", "cable")
            )
        yield [("ip", "netns", "exec", name) if laid else () for name in names]
    finally:
        for name in names:
            ip("netns", "del", name)


def two_machines(root: Path, *args: object) -> list[Scene]:
    """Train with two parents that meet at one address, each with a run folder on its own disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {"HOME": "/proc/nowhere"}  # a home that not even root can write to
    folders = [root / f"disk-{rank}" / "run" for rank in range(2)]
    with two_networks() as ends, ExitStack() as running:
        address = FIRST_MACHINE if ends[0] else "127.0.0.2"
        common = (
            *args,
            "--num_machines",
            2,
            "--main_process_ip",
            address,
            "--main_process_port",
            port,
        )
        programs: list[subprocess.Popen[str]] = []
        for rank, (end, folder) in enumerate(zip(ends, folders, strict=True)):
            command = (
                *end,
                sys.executable,
                MAIN,
                "train",
                *common,
                "--machine_rank",
                rank,
                "--run_dir",
                folder,
            )
            programs.append(running.enter_context(start(command, env=env)))
        told = [program.communicate(timeout=patience(LONGEST_S)) for program in programs]
    places = (folders[0], folders[1] / "machine-1")
    return [
        Scene(place, one.returncode, *words)
        for place, one, words in zip(places, programs, told, strict=True)
    ]


def meets_a_key(root: Path, model: Path) -> Scene:
    """Run on files named by keys; the error of a step that is not finite names its rows."""
    from safetensors.torch import load_file, save_file

    data, spoilt, folder = root / "dump", root / "spoilt", root / "keys"
    data.mkdir()
    for number, key in enumerate(KEYS.values()):
        write_rows(data / f"{key}.jsonl", pairs()[8 * number : 8 * number + 8])
    shutil.copytree(model, spoilt)
    weights = load_file(spoilt / "model.safetensors")
    weights["decoder.bias"][:] = float("nan")
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    args = (
        "--model_name",
        spoilt,
        "--dataset_name",
        data,
        "--eval_strategy",
        "no",
        "--batch_size",
        8,
        "--train_steps",
        4,
    )
    more = ("--max_length", 64, "--train_device", "cpu", "--run_dir", folder, "--json")
    done = run_main("train", *args, *more, env=KEYS, timeout_s=LONGEST_S)
    return Scene(folder, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def scene(
    forks: Forks,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: Path,
    tiny_bert: Path,
    pairs_file: Path,
) -> Callable[[str], Any]:
    root = tmp_path_factory.mktemp(
        "läuft weiter"
    )  # unicode and a space in every path, and a link in one
    (root / "disk").mkdir()
    (root / "link").symlink_to("disk")
    model = (
        "--model_config",
        tiny_config,
        "--max_length",
        64,
        "--learning_rate",
        "3e-3",
        "--train_device",
        "cpu",
    )
    job = (*model, "--dataset_name", pairs_file, "--batch_size", 4)
    four = (
        *job,
        "--train_steps",
        4,
        "--logging_steps",
        1,
        "--fuse_model",
        "false",
        "--save_steps",
        4,
    )
    hang = (*job, "--num_processes", 2, "--hang_timeout_s", HANG_S)
    played: dict[str, Callable[[], Any]] = {
        "hang and another": lambda: hangs_beside_another(
            forks, root, hang, (*four, "--num_processes", 2)
        ),
        "key": lambda: meets_a_key(root, tiny_bert),
        "two machines": lambda: two_machines(root, *four),
    }
    return cache(lambda name: played[name]())


def test_two_simultaneous_jobs_each_find_a_port(scene: Callable[[str], Any]) -> None:
    _, beside = scene("hang and another")
    assert beside.code == 0, beside.err
    assert len(beside.losses()) == 4


def test_two_machines_train_as_two_processes_of_one_do(scene: Callable[[str], Any]) -> None:
    first, second = scene("two machines")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert len(first.losses()) == 4
    assert first.losses() == pytest.approx(scene("hang and another")[1].losses(), rel=1e-6)
    assert second.trace() == first.trace(), "every machine reports, in its own folder"


def test_first_machine_owns_the_run_and_others_keep_a_record(scene: Callable[[str], Any]) -> None:
    first, second = scene("two machines")
    assert first.result["outcome"] == second.result["outcome"] == "done"
    assert [path.name for path in first.folder.glob("checkpoint-*")] == ["checkpoint-4"]
    assert list(second.folder.glob("checkpoint-*")) == []
    ours, theirs = (done.folder / "data" / "train" for done in (first, second))
    assert sorted(path.name for path in ours.iterdir())
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {
        path.name: path.read_bytes() for path in theirs.iterdir()
    }


def test_a_hang_is_exit_9_with_stacks_and_nothing_left(scene: Callable[[str], Any]) -> None:
    hung, _ = scene("hang and another")
    (line,) = [line for line in hung.err.splitlines() if ERROR.match(line)]
    assert hung.code == hung.result["code"] == 9
    assert line.startswith(
        f"error[9]: worker: expected progress within {HANG_S} s, got none from rank "
    )
    assert hung.result["outcome"] == "failed"
    assert hung.result["error"]["code"] == 9
    assert HANG_S <= hung.seen["took_s"] < HANG_S + 20
    stacks = (hung.folder / "log.txt").read_text().partition("--- stacks of rank 0")[2]
    assert re.search(r"loop\.py.* in train", stacks), (
        "rank 0 waits in a collective and answers all the same"
    )
    assert "rank 1 did not answer" in stacks
    assert hung.seen["left"] == []


def test_keys_of_the_environment_are_nowhere_in_a_failed_run(scene: Callable[[str], Any]) -> None:
    failed = scene("key")
    assert failed.code == 6, failed.err
    assert "[redacted]" in failed.err, "the message did hold the keys"
    assert "[redacted]" in (failed.folder / "log.txt").read_text()
    assert list(failed.folder.glob("debug-step-*"))
    texts = {"stdout": failed.out.encode(), "stderr": failed.err.encode()}
    copied = failed.folder / "data"  # of what the user gave, names of files included
    files = [
        path for path in failed.folder.rglob("*") if path.is_file() and copied not in path.parents
    ]
    texts |= {str(path): path.read_bytes() for path in files}
    assert len(texts) > 6
    for name, text in texts.items():
        for key in KEYS.values():
            assert key.encode() not in text, name
            assert json.dumps(key)[1:-1].encode() not in text, name
