"""Helpers of the suite: tiny inputs made in code, and the two programs as a user starts them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugin.config.params import Params
from plugin.run.folder import RunFolder
from plugin.run.outcome import Ending, Outcome
from plugin.run.run_file import Environment, RunFile

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "main.py"

TINY_CONFIG = {
    "model_type": "modernbert",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "global_attn_every_n_layers": 1,
}

# Words of which tests of pretraining make their texts.
TEXT_WORDS = (
    "sky",
    "blue",
    "and",
    "grass",
    "green",
    "while",
    "old",
    "snow",
    "lies",
    "on",
    "every",
    "roof",
    "of",
    "the",
    "town",
)

# The line that a failure prints: code, field, what was expected, what came.
ERROR = re.compile(r"error\[(\d+)\]: (\w+): expected (.+), got (.+)\.")

# Environment of a pod of a PyTorchJob.
PYTORCHJOB = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29577",
}

_THINGS = ("sky", "grass", "sun", "snow", "coal", "blood", "rose", "sea")
_COLOURS = ("blue", "green", "yellow", "white", "black", "red", "pink", "grey")


def pairs() -> list[dict[str, str]]:
    """Return 24 distinct prompt/response rows of different lengths."""
    rows = [
        {"prompt": f"What colour is the {thing}?", "response": f"It is {colour}."}
        for thing, colour in zip(_THINGS, _COLOURS, strict=True)
    ]
    rows += [{"prompt": f"{n} + {n}?", "response": str(2 * n)} for n in range(8)]
    rows += [
        {"prompt": f"Say {thing} three times.", "response": f"{thing} {thing} {thing}"}
        for thing in _THINGS
    ]
    assert len({row["prompt"] for row in rows}) == len(rows) == 24
    return rows


class RunsWhenLoaded:
    """Value whose pickle makes a link named `mark` where it is loaded."""

    def __init__(self, mark: Path):
        self._mark = str(mark)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return os.symlink, ("ran", self._mark)


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Let this process write no file beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_record(folder: Path, outcome: Ending | None) -> None:
    """Write a run.json as this program does; without an outcome, that of a run under way."""
    params = {
        "model_name": "m",
        "dataset_name": "d",
        "training_method": "bert",
        "run_dir": str(folder),
    }
    result = Outcome(outcome, 0).record if outcome else None
    environment = Environment(versions={}, data="", cwd="/")
    RunFolder(folder).write_run(RunFile(params=params, environment=environment, result=result))


def child_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment (one thread, no GPU, no hub: conftest.py) with additions."""
    return {**os.environ, **(env or {})}


def start(
    command: Sequence[object],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stderr: int = subprocess.PIPE,
    own_group: bool = False,
) -> subprocess.Popen[str]:
    """Start a command; the caller reads its output and ends it.

    `own_group`: start it as a terminal does.
    """
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env=child_env(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        process_group=0 if own_group else None,
        # A shell's background jobs, and all that they start, ignore Ctrl-C: these tests may be
        # among them.
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) if own_group else None,
    )


def start_main(
    *args: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python main.py ARGS`; the caller ends it."""
    return start([sys.executable, MAIN, *args], cwd=cwd, env=env)


def run_main(
    *args: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run `python main.py ARGS` to its end."""
    return subprocess.run(
        [sys.executable, str(MAIN), *map(str, args)],
        cwd=cwd,
        env=child_env(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(timeout_s),
        check=False,
    )


def run_python(
    code: str, *, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a small program in its own process, which does not see the tests' import path."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=child_env(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(timeout_s),
        check=False,
    )


def patience(seconds: float) -> float:
    """Return the seconds to wait on this machine for what takes `seconds` on an idle one.

    A suite that runs next to other work must not fail by the clock: work that waits for a core
    takes as many times longer as there are processes for each core.
    """
    return seconds * min(10.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def wait_until(holds: Callable[[], object], what: str, *, deadline_s: float = 60) -> None:
    """Poll until `holds()`; fail after the deadline, naming what was waited for."""
    deadline_s = patience(deadline_s)
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, f"still waiting after {deadline_s:.0f} s: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Return True for a process that exists and does not merely wait to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def processes_naming(text: str) -> list[int]:
    """Return the ids of the living processes whose command line holds `text`."""
    return list(_processes_naming(text.encode()))


def _processes_naming(text: bytes) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                named = text in (folder / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if named and is_running(int(folder.name)):
                yield int(folder.name)


def try_out_here(params: Params, ranks: int, *, download: bool = False) -> Mapping[str, Any]:
    """Return the answer of `plugin.worker --check`, without a new process's import of torch."""
    from plugin.worker.__main__ import check

    answer = io.StringIO()
    with contextlib.redirect_stdout(answer):
        check({"params": params.as_json(), "ranks": ranks})
    return json.loads(answer.getvalue().splitlines()[-1])


def refusal(result: tuple[int, list[str], str]) -> tuple[int, str, str]:
    """Return exit code, field and text of the only error."""
    code, lines, _ = result
    (line,) = lines
    match = ERROR.match(line)
    assert match, line
    assert int(match[1]) == code
    return code, match[2], line


def make_wheel(folder: Path, name: str, version: str, code: str = "", requires: str = "") -> Path:
    """Build a package of one module and its metadata."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{name}/__init__.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        wheel.writestr(
            f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
        )
    return path
