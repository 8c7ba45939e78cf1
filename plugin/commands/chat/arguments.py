"""Command-line arguments of `chat`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...base.errors import JobError, Problem
from ...config.command_line import CommandLine
from ...config.sampler import add_sampler_options, sampler_overrides


def chat_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `chat`; `given` are the sampler's. Raises JobError (exit 2)."""
    about = (
        "Talk to a trained model. A terminal shows the answer while it denoises; /help lists what "
        "else can be typed. Without a terminal every line of the input is answered."
    )
    parser = CommandLine(prog="main.py chat", description=about)
    parser.add_argument("model", help="a run folder, a model folder or a hub id")
    parser.add_argument("--prompt", help="answer this and exit")
    parser.add_argument("--system", default="", help="the system prompt")
    parser.add_argument(
        "--base", default="", help="for an adapter outside of its run: the model it was trained on"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print an object for each line of the input: {prompt, text, steps, nfe, seconds, "
        "tokens_per_forward}, {note, settings} of a command, or {problems}; a line may be an object "
        "{prompt}, {infill} or {command} too",
    )
    parser.add_argument(
        "--denoising",
        action="store_true",
        help="with --json: first {ready, settings, remark}, then {step, canvas} while an answer is "
        "denoised, and its steps as trace",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write every denoising step: {step, block, positions, ids, text, tokens}",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a player of the last answer's denoising"
    )
    add_sampler_options(parser)
    options = parser.parse_args(argv)
    options.given = sampler_overrides(options)
    problems: list[Problem] = []
    if options.prompt is not None and not options.prompt.strip():
        problems.append(Problem("prompt", "a text", "an empty one"))
    if options.denoising and not options.json:
        problems.append(Problem("denoising", "--json with it", "--denoising alone"))
    for name in ("trace", "html"):
        if path := vars(options)[name]:
            setattr(options, name, path := path.expanduser())
            if path.is_dir() or not path.absolute().parent.is_dir():
                got = f"{path}, a folder" if path.is_dir() else f"{path}, whose folder is not there"
                problems.append(Problem(name, "a file that can be written", got))
    if problems:
        raise JobError(*problems)
    return options
