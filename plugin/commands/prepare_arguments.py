"""Command-line arguments of `prepare`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from ..config.command_line import CommandLine, whole_number
from ..config.prepare_params import STEPS, Dedup, PrepareParams


def prepare_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `prepare`; `typed` are the parameters among them.

    Raises JobError (exit 2).
    """
    about = "Turn raw text into a deduplicated corpus with its tokenizer, stored as tokens."
    keys = (f"{name}: {field.description}" for name, field in Dedup.model_fields.items())
    parser = CommandLine(
        prog="main.py prepare",
        description=about,
        epilog="\n".join(("dedup, in the file alone, or `dedup: false`:", *keys)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="parameters from a YAML or JSON file"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the corpus's folder; a rerun resumes in it"
    )
    parser.add_argument(
        "--task",
        type=_share,
        default=(0, 1),
        metavar="k/N",
        help="do only every N-th task of each step, from the k-th on: for N programs on one folder",
    )
    parser.add_argument(
        "--stop_after", choices=STEPS, default="seal", help="end after this step (default: seal)"
    )
    parser.add_argument(
        "--num_proc",
        type=whole_number(1024),
        default=0,
        metavar="N",
        help="processes (default: the cores)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read all files again, those of a finished folder too, and compare their digests",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    for name, field in PrepareParams.model_fields.items():
        if name != "dedup":  # a group, which belongs in the file
            parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=field.description)
    options = parser.parse_args(argv)
    options.typed = {
        name: value for name, value in vars(options).items() if name in PrepareParams.model_fields
    }
    options.out = options.out.expanduser()
    return options


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
    if not found or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"expected k/N with 1 <= k <= N, got {text!r}")
    return int(found[1]) - 1, int(found[2])
