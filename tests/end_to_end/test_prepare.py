"""`main.py prepare` as a program: killed and run again, a long line, a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.corpora import changed, contents, sentences, write_texts
from helpers.support import ROOT

from plugin.base.process import torch_program

pytestmark = pytest.mark.end_to_end

# Starts the program with processes even for a small corpus.
WITH_PROCESSES = """
import sys
from plugin.commands.prepare import main
from plugin.corpus import steps
steps.SMALL = 0
sys.exit(main(sys.argv[1:]))
"""


def config(folder: Path, data: Path, **values: object) -> Path:
    path = folder / "prepare.yaml"
    given = {"dataset_name": str(data), "vocab_size": 512, **values}
    path.write_text(json.dumps(given), encoding="utf-8")
    return path


def prepare(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "main.py"), "prepare", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def children(parent: int) -> list[int]:
    """Return the running processes that a process started."""
    listed = subprocess.run(
        ["ps", "--ppid", str(parent), "-o", "pid="], capture_output=True, text=True, check=False
    )
    return [int(word) for word in listed.stdout.split()]


def kill_after(line: str, out: Path, config: Path) -> list[int]:
    """Start the program, kill it once it prints a line that begins so; return its children."""
    words = ["--config", str(config), "--out", str(out), "--num_proc", "2"]
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", WITH_PROCESSES, *words],
        stderr=subprocess.PIPE,
        text=True,
        env=torch_program(os.environ),
    )
    assert program.stderr
    for printed in program.stderr:
        if printed.startswith(line):
            break
    else:
        pytest.fail(f"no line begins with {line}")
    found = children(program.pid)
    program.send_signal(signal.SIGKILL)
    program.wait()
    program.stderr.close()
    return found


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_killed_run_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    base = sentences(1500, words=60)
    near = [changed(text, 1, seed=2) for text in base[:300]]
    data = write_texts(tmp_path / "a.jsonl", [*base, *near])
    file = config(tmp_path, data)
    alone = prepare("--config", file, "--out", tmp_path / "alone", "--json")
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout)["dedup"]["near_dropped"] > 290
    workers: list[int] = []
    for line in ("list:", "sign:", "keep: 1 of", "tokenizer:"):
        workers += kill_after(line, tmp_path / "out", file)
        assert not (tmp_path / "out" / "manifest.json").exists()
    done = prepare("--config", file, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [process for process in workers if is_running(process)]


def test_line_of_50_mb_is_one_document(tmp_path: Path) -> None:
    words = " ".join(f"w{number * number % 9973}" for number in range(50_000))
    long = " ".join([words] * 170)  # 50 MB
    assert len(long) > 50_000_000
    data = write_texts(tmp_path / "a.jsonl", [*sentences(20), long, long[:-1]])
    file = config(tmp_path, data, eval_share=0)
    done = prepare("--config", file, "--out", tmp_path / "out", "--stop_after", "keep")
    assert done.returncode == 0, done.stderr
    assert "keep: 21 train, 0 eval, 0 exact duplicate, 1 near duplicate" in done.stderr


def test_disk_that_is_full_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "a.jsonl", sentences(3000))
    file = config(tmp_path, data)
    out = tmp_path / "out"
    # No file may pass 100 kB: the system refuses the write as it does on a full disk.
    command = f"ulimit -f 100; exec {sys.executable} {ROOT / 'main.py'} prepare --config {file} --out {out}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "error[7]: out: expected a folder that can be written" in done.stderr
    assert not (out / "manifest.json").exists()
    again = prepare("--config", file, "--out", out, "--stop_after", "keep")
    assert "keep: 2968 train, 32 eval" in again.stderr
