"""Command-line arguments of `compare` and `plot`. Imports no torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import JobError, Problem
from ..config.command_line import CommandLine


@dataclass(frozen=True, kw_only=True)
class CurveRequest:
    """A checked command line of `compare` or `plot`."""

    runs: tuple[str, ...]
    png: Path | None
    json: bool


def compare_options(argv: Sequence[str]) -> CurveRequest:
    """Parse the arguments of `compare`. Raises JobError (exit 2)."""
    about = (
        "Compare runs: parameters that differ, results side by side, curves of the losses. "
        "A run of stages stands for its newest stage; alone, for all of its stages."
    )
    parser = CommandLine(prog="main.py compare", description=about, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    return _request(parser, argv, "the losses")


def plot_options(argv: Sequence[str]) -> CurveRequest:
    """Parse the arguments of `plot`. Raises JobError (exit 2)."""
    about = (
        "Draw the curves of a run: losses with their interval, evaluation loss by mask ratio, "
        "learning rate, speed, gradient norm."
    )
    parser = CommandLine(prog="main.py plot", description=about, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs=1, metavar="RUN", help="a run folder; of a run of stages, its newest stage"
    )
    return _request(parser, argv, "all curves")


def _request(parser: CommandLine, argv: Sequence[str], drawn: str) -> CurveRequest:
    parser.add_argument("--png", metavar="FILE", help=f"draw {drawn} into a PNG (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args(argv)
    return _checked(options)


def _checked(options: argparse.Namespace) -> CurveRequest:
    png = Path(os.path.expanduser(options.png)) if options.png else None
    problems = [
        Problem("runs", "run folders", f"{name}, which is missing")
        for name in options.runs
        if not os.path.exists(os.path.expanduser(name))
    ]
    if options.png is not None and (png is None or os.path.isdir(png)):
        got = f"{png}, which is a folder" if png else "an empty name"
        problems.append(Problem("png", "a file", got))
    if problems:
        raise JobError(*problems)
    return CurveRequest(runs=tuple(options.runs), png=png, json=options.json)
