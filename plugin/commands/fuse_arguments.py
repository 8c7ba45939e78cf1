"""Command-line arguments of `fuse`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import JobError, Problem
from ..config.command_line import CommandLine


def fuse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `fuse`: an adapter and its base, or a full model's checkpoint.

    Raises JobError (exit 2).
    """
    parser = CommandLine(
        prog="main.py fuse",
        description="Merge an adapter that was trained earlier into its base, or publish a full "
        "model's checkpoint without what only its training needs.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--adapter", type=Path, help="the adapter's folder (or a run folder)")
    what.add_argument(
        "--checkpoint", type=Path, help="a checkpoint of a run that trains all weights"
    )
    parser.add_argument("--model_name", help="the base that the adapter was trained on")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the model")
    parser.add_argument(
        "--fuse_base",
        choices=("trained", "original"),
        default="trained",
        help="for a 4-bit base: see info.md",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print {path, fuse_base, max_logit_difference, differences}",
    )
    options = parser.parse_args(argv)
    if options.adapter and not options.model_name:
        raise JobError(Problem("model_name", "the base that the adapter was trained on", "nothing"))
    return options
