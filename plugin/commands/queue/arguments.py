"""Command-line arguments of `queue`. Imports no torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...base.errors import JobError, Problem
from ...config.command_line import CommandLine
from ...config.wording import cut, did_you_mean, quoted
from ...queue.content import typed_over
from ...run.asked import add_train_arguments, asked_values

ACTIONS = {
    "add": "add a job at the end: the words of train, or a file",
    "list": "list the jobs",
    "cancel": "cancel a waiting job; a running one stops and saves",
    "move": "move a waiting job to a place",
    "clear": "forget the jobs that have ended; their runs stay",
    "log": "print what a job's train has logged",
    "start": "start the worker, after a restart of the machine or for files copied in by hand",
}
_ENVIRONMENT = (
    "A job has the environment of whoever started the worker, not of this shell, and no variable "
    "is written down: choose its GPUs with --gpu_ids."
)
_OWN = ("action", "run_root", "json", "name")


@dataclass(frozen=True, kw_only=True)
class QueueRequest:
    """A checked command line of `queue`."""

    action: str
    root: Path  # of all runs, absolute
    json: bool
    name: str = ""
    place: int = 0
    values: Mapping[str, object] = field(default_factory=dict[str, object])  # of add, as the next
    typed: tuple[str, ...] = ()
    beside: Path | None = None  # folder of the --config file


def queue_options(argv: Sequence[str]) -> QueueRequest:
    """Parse the arguments of `queue`. Raises JobError (exit 2)."""
    options, extra = _parser().parse_known_args(argv)
    root = options.run_root.expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise JobError(Problem("run_root", "a folder", f"{root}, which is a file"))
    if options.action == "add":
        return _add(options, extra, root)
    if extra:
        fix = did_you_mean(extra[0].lstrip("-"), ("run_root", "json"))
        got = cut(extra[0])
        see = fix or f"See main.py queue {options.action} --help."
        raise JobError(Problem("command", "a known option or value", got, see))
    return QueueRequest(
        action=options.action,
        root=root,
        json=options.json,
        name=getattr(options, "name", ""),
        place=_place(options.place) if options.action == "move" else 0,
    )


def _place(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise JobError(Problem("place", "a whole number above 0", quoted(text), "1 is next."))
    return int(text)


def _add(options: argparse.Namespace, extra: Sequence[str], root: Path) -> QueueRequest:
    content, typed = asked_values(options, extra, _OWN)
    beside = Path(options.config).expanduser().absolute().parent if options.config else Path.cwd()
    return QueueRequest(
        action="add",
        root=root,
        json=options.json,
        name=options.name,
        values=typed_over(content, typed, beside),
        typed=tuple(typed),
        beside=beside,
    )


def _parser() -> CommandLine:
    about = (
        "Queue jobs, which run one after another on each set of devices, detached from this "
        "shell. A job is a file in DIR/queue/waiting that `train --config` takes; one that is "
        "copied there by hand is a job too."
    )
    parser = CommandLine(prog="main.py queue", description=about, allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="|".join(ACTIONS), required=True)
    for action, text in ACTIONS.items():
        whole = f"{text}. {_ENVIRONMENT}" if action == "add" else text
        sub = actions.add_parser(action, help=text, description=whole, allow_abbrev=False)
        sub.add_argument(
            "--run_root",
            type=Path,
            default=Path("runs"),
            metavar="DIR",
            help="folder of runs [runs]",
        )
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        if action in ("cancel", "move", "log"):
            sub.add_argument("name", metavar="NAME", help="of the job; its number may be left out")
        if action == "move":
            sub.add_argument("place", metavar="PLACE", help="1 is next")
        if action == "add":
            sub.add_argument("--name", default="", help="name of the job [that of the adapter]")
            add_train_arguments(sub)
    return parser
