"""Command-line arguments of `chat` and `fuse`.

They are parsed before torch is imported, so that a typo is reported immediately.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import JobError, Problem
from ..config.command_line import CommandLine, whole_number

SAMPLER_OPTIONS = {
    "max_new_tokens": "longest answer",
    "block_length": "tokens of a block",
    "steps": "denoising steps of a block",
}


def chat_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `chat`. Raises JobError (exit 2)."""
    about = "Talk to a trained model. A terminal shows the answer while it denoises; --prompt prints one answer."
    parser = CommandLine(prog="main.py chat", description=about)
    parser.add_argument("model", help="a run folder, a model folder or a hub id")
    parser.add_argument("--prompt", help="answer this and exit")
    parser.add_argument(
        "--base",
        default="",
        help="for an adapter outside of its run: the model it was trained on",
    )
    parser.add_argument(
        "--json", action="store_true", help="with --prompt: {prompt, text, steps, seconds}"
    )
    for name, text in SAMPLER_OPTIONS.items():
        parser.add_argument(
            f"--{name}",
            type=whole_number(),
            metavar="N",
            help=f"{text} (default: what the model was saved with)",
        )
    options = parser.parse_args(argv)
    if options.json and options.prompt is None:
        raise JobError(Problem("json", "--prompt as well", "no prompt", "A dialogue has no JSON."))
    return options


def fuse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `fuse`. Raises JobError (exit 2)."""
    parser = CommandLine(
        prog="main.py fuse", description="Merge an adapter that was trained earlier into its base."
    )
    parser.add_argument(
        "--adapter", type=Path, required=True, help="the adapter's folder (or a run folder)"
    )
    parser.add_argument("--model_name", required=True, help="the base it was trained on")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the fused model")
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
    return parser.parse_args(argv)
