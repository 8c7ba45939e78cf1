"""Queue with real jobs: order, failures, a killed worker, a stop, and train's own run.json."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.scenes import ENDLESS, LONGEST_S
from helpers.support import processes_naming, run_main, start_main, wait_until

from plugin.queue.folder import Queue
from plugin.run.folder import RunFolder

TINY = {"max_length": "64", "train_device": "cpu", "batch_size": "4", "eval_strategy": "no"}
TINY |= {"fuse_model": "false"}  # which a program of its own reloads


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """Yield the queue of a new root, and end what it has left at the end."""
    root = tmp_path / "runs"
    yield Queue(root)
    for pid in processes_naming(str(root)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def tiny_job(tiny_config: Path, pairs_file: Path) -> dict[str, Any]:
    inputs = {"model_config": str(tiny_config), "dataset_name": str(pairs_file)}
    return {**inputs, **TINY, "train_steps": "2"}


def main(queue: Queue, action: str, *args: object) -> dict[str, Any]:
    """Run `main.py queue ACTION` from another folder, and return the object that it prints."""
    done = run_main("queue", action, "--run_root", queue.root, "--json", *args)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def states(queue: Queue) -> dict[str, str]:
    return {job.name: job.state for job in queue.jobs()}


def run_dir(queue: Queue, name: str) -> Path:
    return next(Path(job.run_dir) for job in queue.jobs() if job.name == name)


def steps(queue: Queue, name: str) -> int:
    with suppress(OSError):
        return json.loads((run_dir(queue, name) / "progress.json").read_text())["step"]
    return 0


def worker_of(queue: Queue) -> list[int]:
    return [
        pid
        for pid in processes_naming(str(queue.root))
        if b"plugin.queue" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def ask_for_work(queue: Queue, job: dict[str, Any], folder: Path) -> None:
    """Add an endless job and four behind it: two that fail, one in front, one taken back."""
    main(queue, "add", "--name", "long", *words(job | {"train_steps": ENDLESS[1]}))
    wait_until(lambda: states(queue).get("00010-long") == "running", "the first job")
    config = folder / "job.yaml"
    config.write_text(yaml.safe_dump(job | {"dataset_name": "missing.jsonl"}))
    main(queue, "add", "--name", "refused", "--config", config)
    queue.add(job, "unwanted")
    (folder / "second.yaml").write_text("train_steps: 3\n")
    stages = [{"name": "one"}, {"name": "two", "config": "second.yaml"}]
    config.write_text(yaml.safe_dump({**job, "stages": stages}))
    added = main(queue, "add", "--name", "good", "--config", config)
    assert (added["name"], added["place"]) == ("00040-good", 3)
    (queue.root / "queue" / "waiting" / "hand.yaml").write_text("dataset_name: x\nlr: 3\n")
    assert main(queue, "move", "good", 1)["name"] == "00011-good"
    assert queue.cancel("unwanted").state == "cancelled"


def words(job: dict[str, Any]) -> list[str]:
    return [word for name, value in job.items() for word in (f"--{name}", str(value))]


def test_a_queue_outlives_its_worker_and_its_failures(
    queue: Queue, tiny_job: dict[str, Any], tmp_path: Path
) -> None:
    ask_for_work(queue, tiny_job, tmp_path)
    listed = main(queue, "list")
    order = [(job["name"], job["state"]) for job in listed["jobs"] if job["state"] == "waiting"]
    assert listed["worker"] is True
    assert order[:2] == [("00011-good", "waiting"), ("00020-refused", "waiting")]

    wait_until(lambda: steps(queue, "00010-long") >= 2, "two steps", deadline_s=LONGEST_S)
    (pid,) = worker_of(queue)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not queue.has_worker(), "its lock to be free")  # later than its memory
    before = steps(queue, "00010-long")
    wait_until(lambda: steps(queue, "00010-long") > before, "steps", deadline_s=LONGEST_S)

    main(queue, "start")
    (other,) = worker_of(queue)
    assert other != pid
    assert states(queue)["00010-long"] == "running"
    stopped = main(queue, "cancel", "long")
    assert stopped["state"] == "running"
    wait_until(lambda: not worker_of(queue), "all jobs to end", deadline_s=3 * LONGEST_S)
    found = states(queue)
    assert sorted(found.values()) == ["cancelled", "done", "failed", "failed", "stopped"]
    assert found["00010-long"] == "stopped"
    assert RunFolder(run_dir(queue, "00010-long")).checkpoints()
    good = run_dir(queue, "00011-good")
    assert RunFolder(good / "2-two").read_run().params["train_steps"] == 3
    hand = next(job for job in queue.jobs() if job.name == "hand")
    assert hand.error.startswith("lr: expected a known parameter, got an unknown name.")
    assert "missing.jsonl" in queue.log("refused").read_text()
    assert main(queue, "clear") == {"cleared": 5}
    assert queue.jobs() == []


def test_a_queued_job_is_the_run_of_the_same_words(
    queue: Queue, tiny_job: dict[str, Any], tmp_path: Path
) -> None:
    """run.json has the same parameters byte for byte; train writes it before it loads a model."""
    inputs = {name: os.path.relpath(tiny_job[name], tmp_path) for name in list(tiny_job)[:2]}
    line = words(tiny_job | inputs)
    done = run_main("queue", "add", *line, "--run_root", "runs", cwd=tmp_path)
    assert done.stdout == "added        00010-adaptor, place 1\n", done.stderr
    wait_until(lambda: not worker_of(queue), "the job to end", deadline_s=LONGEST_S)
    (job,) = queue.jobs()
    assert (job.state, job.code, job.error) == ("done", 0, "")
    log = run_main("queue", "log", "adaptor", "--run_root", "runs", cwd=tmp_path)
    assert f"run folder: {job.run_dir}" in log.stdout
    run = Path(job.run_dir)
    queued = json.loads((run / "run.json").read_text())["params"]
    run.rename(tmp_path / "queued")
    with start_main("train", *line, "--run_dir", run, cwd=tmp_path) as program:
        wait_until((run / "run.json").exists, "run.json", deadline_s=LONGEST_S)
        program.kill()
        program.communicate()
    trained = json.loads((run / "run.json").read_text())["params"]
    assert json.dumps(queued) == json.dumps(trained)


def test_a_job_added_as_the_worker_ends_is_not_lost(queue: Queue, tiny_job: dict[str, Any]) -> None:
    """The worker ends in the turn that notes the end of its last job."""
    wrong = tiny_job | {"dataset_name": "missing.jsonl"}
    for number in range(1, 4):
        name = queue.add(wrong).name
        assert name == f"{10 * number:05d}-adaptor"
        wait_until(lambda name=name: states(queue)[name] == "failed", f"the end of {name}")
    wait_until(lambda: not worker_of(queue), "the worker to end")
    assert queue.has_worker() is False


def test_wrong_words_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for words, field in (
        (("add", "--batch_siz", 3), "batch_siz"),
        (("cancel", "x"), "job"),
        (("move", "x", "0"), "place"),
        (("lst",), "command"),
        (("list", "--runroot", "x"), "command"),
        (("add", "--config", tmp_path), "config"),
    ):
        done = run_main("queue", *words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert done.stderr.startswith(f"error[2]: {field}: "), done.stderr
