"""Command-line arguments of `studio`. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...base.errors import JobError, Problem
from ...config.command_line import CommandLine

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class StudioRequest:
    """A checked command line of `studio`."""

    root: Path  # of all runs, absolute
    host: str
    port: int  # 0: a free one
    opens: bool  # a browser
    json: bool


def studio_options(argv: Sequence[str]) -> StudioRequest:
    """Parse the arguments of `studio`. Raises JobError (exit 2)."""
    about = (
        "Open the form, the queue, runs, chat and player on one local page. The folders of runs "
        "are its only database: what a command line started shows up in it."
    )
    parser = CommandLine(prog="main.py studio", description=about, allow_abbrev=False)
    parser.add_argument(
        "--run_root", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs [runs]"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=int, default=0, help="port [a free one]")
    parser.add_argument("--no_open", action="store_true", help="open no browser")
    parser.add_argument("--json", action="store_true", help="print {url} on the first line")
    options: argparse.Namespace = parser.parse_args(argv)
    root = options.run_root.expanduser().absolute()
    problems: list[Problem] = []
    if root.exists() and not root.is_dir():
        problems.append(Problem("run_root", "a folder", f"{root}, which is a file"))
    if not 0 <= options.port < 65536:
        problems.append(Problem("port", "0 to 65535", str(options.port)))
    if find_spec("nicegui") is None:
        fix = "Run `bash setup.sh --studio`."
        problems.append(Problem("studio", "NiceGUI, which serves the page", "no such package", fix))
    if problems:
        raise JobError(*problems)
    return StudioRequest(
        root=root,
        host=options.host,
        port=options.port,
        opens=not options.no_open,
        json=options.json,
    )
