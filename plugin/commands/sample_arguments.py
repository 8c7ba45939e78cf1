"""Command-line arguments of `sample`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import JobError, Problem
from ..config.command_line import CommandLine, whole_number
from ..config.sampler import add_sampler_options, sampler_overrides

MOST = 100_000  # samples of a prompt, rows of a batch


def sample_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `sample`; `given` are the sampler's. Raises JobError (exit 2)."""
    about = (
        "Answer the prompts of a file, in its order: lines {prompt, text, nfe}. A stopped job is "
        "resumed by the same command. Timings and settings go to OUT.json."
    )
    parser = CommandLine(prog="main.py sample", description=about)
    parser.add_argument("model", help="a run folder, a model folder or a hub id")
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="FILE",
        help="rows with prompt or messages; optionally system, and infill: a text with holes [[N]] "
        "of N tokens, which is the answer, or without a prompt a plain text",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file")
    parser.add_argument(
        "--n", type=whole_number(MOST), default=1, metavar="N", help="samples a prompt (default: 1)"
    )
    parser.add_argument(
        "--batch_size",
        type=whole_number(MOST),
        default=8,
        metavar="N",
        help="answers that are denoised together, which changes no answer (default: 8)",
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write every denoising step, one line each"
    )
    parser.add_argument(
        "--base", default="", help="for an adapter outside of its run: the model it was trained on"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT, and a part of another job"
    )
    parser.add_argument("--json", action="store_true", help="print the content of OUT.json")
    add_sampler_options(parser)
    options = parser.parse_args(argv)
    options.given = sampler_overrides(options)
    problems: list[Problem] = []
    named: dict[Path, str] = {}
    for name in ("input", "out", "trace"):
        if path := vars(options)[name]:
            setattr(options, name, path := path.expanduser())
            if name != "input" and path.is_dir():
                problems.append(Problem(name, "a file", f"{path}, a folder"))
            if (first := named.setdefault(path.absolute(), name)) != name:
                got = f"{path}, which is the {first} file"
                problems.append(Problem(name, "a file of its own", got))
    if not options.input.exists():
        problems.append(
            Problem("input", "a file of prompts", f"{options.input}, which is not there")
        )
    if problems:
        raise JobError(*problems)
    return options
