"""Runs of several ranks and several machines for real, two at once; one that hangs, and one that meets a key.

The scenes run side by side in the background; each test reads what became of one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from scenes import LONGEST_S, Scene, broken_off, whole
from support import ERROR, processes_naming, read_lines, run_main, wait_until, write_rows

HANG_S = 25  # longer than a rank's imports take on a busy machine
KEYS = {"HF_TOKEN": "hf_" + "Zy9" * 12, "WANDB_API_KEY": "fedcba98" * 5, "MY_SECRET": 'Tr0ub4dor&3 "quoted"'}
Scenes = dict[str, "Future[Any]"]


def stop_one_rank(program: subprocess.Popen[str], folder: Path) -> None:
    """Rank 1 stands still, as a process does that waits for a lost disk; rank 0 waits for it in a collective."""
    (rank,) = [
        pid for pid in processes_naming(str(folder)) if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ]
    os.kill(rank, signal.SIGSTOP)


def two_machines(root: Path, *args: object) -> list[Scene]:
    """Two parents that meet at one address, each with a run folder on a disk of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = (*args, "--num_machines", 2, "--main_process_ip", "127.0.0.2", "--main_process_port", port)
    env = {"GLOO_SOCKET_IFNAME": "lo", "HOME": "/proc/nowhere"}  # a home nobody can write to, root neither

    def machine(rank: int) -> Scene:
        folder = root / f"disk-{rank}" / "run"
        done = run_main("train", *common, "--machine_rank", rank, "--run_dir", folder, env=env, timeout_s=LONGEST_S)
        return Scene(folder / "machine-1" if rank else folder, done.returncode, done.stdout, done.stderr)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(machine, (1, 0)))[::-1]


def meets_a_key(root: Path, *args: object) -> Scene:
    """The data has a column named by a key, and the message that refuses it names the columns seen."""
    data = write_rows(root / "dump.jsonl", [dict.fromkeys(KEYS.values(), "x")] * 4)
    folder = root / "keys"
    done = run_main("train", *args, "--dataset_name", data, "--run_dir", folder, "--json", env=KEYS, timeout_s=LONGEST_S)
    return Scene(folder, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, pairs_file: Path) -> Iterator[Scenes]:
    root = tmp_path_factory.mktemp("läuft weiter")  # unicode and a space in every path, and a link in one
    (root / "disk").mkdir()
    (root / "link").symlink_to("disk")
    model = ("--model_config", tiny_config, "--max_length", 64, "--learning_rate", "3e-3", "--train_device", "cpu")
    job = (*model, "--dataset_name", pairs_file, "--batch_size", 4)
    four = (*job, "--train_steps", 4, "--logging_steps", 1, "--fuse_model", "false", "--save_steps", 4)
    with ThreadPoolExecutor(3) as pool:
        hang = (*job, "--num_processes", 2, "--hang_timeout_s", HANG_S)
        yield {
            "hang": pool.submit(broken_off, stop_one_rank, root / "hang", *hang),
            "two processes": pool.submit(whole, root / "link" / "two", *four, "--num_processes", 2),
            "key": pool.submit(meets_a_key, root, *model),
            "two machines": pool.submit(two_machines, root, *four),
        }


@pytest.fixture
def scene(scenes: Scenes) -> Callable[[str], Any]:
    return lambda name: scenes[name].result(timeout=4 * LONGEST_S)


def test_two_jobs_of_two_processes_at_once_each_find_a_port(scene: Callable[[str], Scene]) -> None:
    spans = []
    for name in ("two processes", "hang"):
        times = [datetime.fromisoformat(event["time"]) for event in read_lines(scene(name).folder / "events.jsonl")]
        spans.append((times[0], times[-1]))
        assert [event for event in read_lines(scene(name).folder / "events.jsonl") if event["type"] == "progress"]
    assert max(start for start, _ in spans) < min(end for _, end in spans), "they did not run at the same time"
    assert scene("two processes").code == 0, scene("two processes").err


def test_two_machines_train_as_two_processes_of_one_do(scene: Callable[[str], Any]) -> None:
    first, second = scene("two machines")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert len(first.losses()) == 4
    assert first.losses() == pytest.approx(scene("two processes").losses(), rel=1e-6)
    assert second.trace() == first.trace(), "every machine reports, in its own folder"


def test_the_first_machine_owns_the_run_and_the_others_keep_a_record(scene: Callable[[str], Any]) -> None:
    first, second = scene("two machines")
    assert first.result["outcome"] == second.result["outcome"] == "done"
    assert [path.name for path in first.folder.glob("checkpoint-*")] == ["checkpoint-4"]
    assert list(second.folder.glob("checkpoint-*")) == []
    ours, theirs = (done.folder / "data" / "train" for done in (first, second))
    assert sorted(path.name for path in ours.iterdir())
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {
        path.name: path.read_bytes() for path in theirs.iterdir()
    }


def test_a_hang_is_exit_9_with_stacks_and_nothing_left(scene: Callable[[str], Scene]) -> None:
    hung = scene("hang")
    (line,) = [line for line in hung.err.splitlines() if ERROR.match(line)]
    assert hung.code == hung.result["code"] == 9
    assert line.startswith(f"error[9]: worker: expected progress within {HANG_S} s, got none from rank ")
    assert hung.result["outcome"] == "failed"
    assert hung.result["error"]["code"] == 9
    assert HANG_S <= hung.seen["took"].total_seconds() < HANG_S + 20
    stacks = (hung.folder / "log.txt").read_text().partition("--- stacks of rank 0")[2]
    assert re.search(r"loop\.py.* in train", stacks), "rank 0 waits in a collective and answers all the same"
    assert "rank 1 did not answer" in stacks
    wait_until(lambda: processes_naming(str(hung.folder)) == [], "the ranks to be gone", deadline_s=1)


def test_keys_of_the_environment_are_nowhere_in_a_failed_run(scene: Callable[[str], Scene]) -> None:
    failed = scene("key")
    assert failed.code == 3, failed.err
    assert "[redacted]" in failed.err, "the message did hold the keys"
    assert "[redacted]" in failed.result["error"]["got"]
    texts = {"stdout": failed.out.encode(), "stderr": failed.err.encode()}
    texts |= {str(path): path.read_bytes() for path in failed.folder.rglob("*") if path.is_file()}
    assert len(texts) > 6
    for name, text in texts.items():
        for key in KEYS.values():
            assert key.encode() not in text, name
            assert json.dumps(key)[1:-1].encode() not in text, name
