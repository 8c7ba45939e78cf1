"""Weights & Biases logger, a process of its own.

`python -m plugin.parent.wandb RUN_FOLDER` follows metrics.jsonl until its stdin ends. The run never
waits for it and never fails with it. The parent holds its stdin, so it also ends when the parent is
killed.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..base.errors import Problem
from ..base.files import open_plain, write_whole
from ..base.process import child_path, inherited
from ..base.redact import guard_streams, scrub
from ..config.params import Params
from ..run.events import curves
from ..run.folder import RunFolder, Tail, to_json

FACTS, LOG = "wandb.json", "wandb.log"  # {id, url} of the run at W&B; output of the library
PROJECT = "diffusion-llm-trainer"
END_S = 20.0  # for the last figures to arrive
UNREACHED_S = 2.0  # the same, when not even the run has been created there
POLL_S = 1.0


def key_problem(params: Params, environ: Mapping[str, str]) -> Problem | None:
    """Return the reason why nothing can be logged there, if logging was requested."""
    offline = environ.get("WANDB_MODE", "") in ("offline", "dryrun", "disabled")
    if not params.log_to_wandb or offline or environ.get("WANDB_API_KEY") or _in_netrc(environ):
        return None
    fix = "Set WANDB_API_KEY, or WANDB_MODE=offline."
    return Problem("log_to_wandb", "a W&B key in the environment or in netrc", "none", fix)


def _in_netrc(environ: Mapping[str, str]) -> bool:
    path = Path(environ.get("NETRC") or Path(environ.get("HOME", "/")) / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextmanager
def relayed(params: Params, folder: RunFolder, say: Callable[[str], None]) -> Generator[None]:
    """Log the run inside there too, if requested; any failure is one warning."""
    if problem := key_problem(params, os.environ):
        say(f"warning: {problem} The run continues without it.")
    if problem or not params.log_to_wandb:
        yield
        return
    with open(folder / LOG, "ab", opener=open_plain) as log:
        program = subprocess.Popen(
            [sys.executable, "-P", "-m", "plugin.parent.wandb", str(folder.path)],
            env={**inherited(os.environ), **child_path(os.environ)},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        _close(program, folder, say)


def _close(program: subprocess.Popen[bytes], folder: RunFolder, say: Callable[[str], None]) -> None:
    assert program.stdin, "it was opened as a pipe"
    with contextlib.suppress(BrokenPipeError):
        program.stdin.close()
    reached = (folder / FACTS).exists()
    try:
        code: int | None = program.wait(END_S if reached else UNREACHED_S)
    except subprocess.TimeoutExpired:
        code = None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)  # with the processes of the library
    program.wait()
    scrub(folder / LOG)
    if code != 0:
        say(
            f"warning: log_to_wandb: not everything arrived there; see {folder / LOG}. The run itself is complete."
        )


def main() -> int:
    guard_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it by closing stdin
    folder = RunFolder(Path(sys.argv[1]))
    import wandb

    params = Params.model_validate(folder.read_run().params)
    known = folder / FACTS
    earlier: dict[str, Any] = (
        json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    )
    # A resumed run has already logged the earlier lines.
    lines = Tail(folder / "metrics.jsonl", from_end=bool(earlier))
    run = wandb.init(
        project=params.wandb_project or os.environ.get("WANDB_PROJECT", "") or PROJECT,
        id=earlier.get("id") or secrets.token_hex(4),
        name=f"{params.adaptor_name}-{folder.path.name}",
        config={name: value for name, value in params.as_json().items() if value != ""},
        dir=str(folder.path),
        resume="allow",
        settings=wandb.Settings(
            console="off", disable_git=True, disable_code=True, disable_job_creation=True
        ),
    )
    write_whole(known, to_json({"id": run.id, "url": run.url}) + "\n")
    over = False
    while not over:
        over = bool(select.select([sys.stdin], [], [], POLL_S)[0])
        if over:
            signal.alarm(int(END_S))  # a parent that was killed cannot end us
        for line in lines.new_lines():
            figures: dict[str, Any] = json.loads(line)
            step = figures.pop("step")
            run.log(curves(figures), step=step)
    run.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
