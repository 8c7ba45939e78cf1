"""Command-line arguments of `export`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..config.command_line import CommandLine


def export_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `export`. Raises JobError (exit 2)."""
    parser = CommandLine(
        prog="main.py export",
        description="Write a trained model in the layout that serving engines load.",
    )
    parser.add_argument("model", help="a run folder or a model folder")
    parser.add_argument(
        "--format",
        choices=("sdar",),
        required=True,
        help="sdar: a Qwen3 model that is denoised block by block, for sglang and lmdeploy",
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the layout")
    parser.add_argument(
        "--json", action="store_true", help="print {path, max_logit_difference, warning}"
    )
    return parser.parse_args(argv)
