"""Command-line arguments of `probe`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import JobError, Problem
from ..config.command_line import CommandLine, whole_number

COLUMNS = {
    "text_field": ("text", "classify: column of the text"),
    "label_field": ("label", "classify: column of the label"),
    "query_field": ("query", "retrieve: column of the query"),
    "document_field": ("document", "retrieve: column of its document"),
}
COUNTS = {
    "max_length": (512, "tokens of a text; the rest of a longer one is left out"),
    "epochs": (3, "with --finetune: passes over the rows"),
}
# Values that are no counts, and their bounds.
NUMBERS = {
    "eval_share": (0.2, 0.0, 0.9, "share held out where the data has no eval split"),
    "learning_rate": (5e-5, 0.0, 1.0, "with --finetune: peak learning rate"),
}


def probe_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `probe`. Raises JobError (exit 2)."""
    about = "Measure how a trained encoder serves a task: accuracy or recall on local data, and latency."
    parser = CommandLine(prog="main.py probe", description=about)
    parser.add_argument("model", help="a run folder, a model folder or a hub id")
    parser.add_argument("--data", required=True, help="a file, folder or hub id")
    parser.add_argument(
        "--task",
        choices=("classify", "retrieve"),
        help="default: by the data's columns, a label or a query",
    )
    parser.add_argument(
        "--finetune", action="store_true", help="classify: train all weights, not a head alone"
    )
    parser.add_argument(
        "--baseline",
        choices=("random", "none"),
        default="random",
        help="random: measure the same architecture with random weights too (default)",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="a new folder for the encoder, as AutoModel loads it",
    )
    for name, (default, text) in COLUMNS.items():
        parser.add_argument(f"--{name}", default=default, help=f"{text} (default: {default})")
    for name, (count, text) in COUNTS.items():
        parser.add_argument(
            f"--{name}",
            type=whole_number(2**63 - 1),
            default=count,
            metavar="N",
            help=f"{text} (default: {count})",
        )
    for name, (number, _, _, text) in NUMBERS.items():
        parser.add_argument(f"--{name}", default=number, help=f"{text} (default: {number:g})")
    parser.add_argument("--seed", default="42", help="seeds the split and new weights")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args(argv)
    if problems := [*_numbers(options), *_seed(options), *_checks(options)]:
        raise JobError(*problems)
    options.export = options.export.expanduser() if options.export else None
    return options


def _numbers(options: argparse.Namespace) -> list[Problem]:
    """Turn the texts of NUMBERS into numbers, in place; list those out of bounds."""
    found: list[Problem] = []
    for name, (_, low, high, _) in NUMBERS.items():
        try:
            value = float(getattr(options, name))
            fits = low < value <= high
        except ValueError:
            value, fits = 0.0, False
        if not fits:
            expected = f"a number > {low:g} and <= {high:g}"
            found.append(Problem(name, expected, repr(getattr(options, name))[:80]))
        setattr(options, name, value)
    return found


def _seed(options: argparse.Namespace) -> list[Problem]:
    """Turn the text of the seed into a number, in place."""
    text = options.seed
    options.seed = int(text) if re.fullmatch(r"[0-9]{1,19}", text) else -1
    if 0 <= options.seed < 2**63:
        return []
    return [Problem("seed", "a whole number >= 0 and < 2**63", repr(text)[:80])]


def _checks(options: argparse.Namespace) -> list[Problem]:
    if options.finetune and options.task == "retrieve":
        return [Problem("finetune", "task classify", "retrieve", "Pairs have no labels to learn.")]
    return []
