"""Command line: train, check and their --config file. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base.errors import JobError, guarded, json_line, print_problems
from .base.redact import guard_streams
from .config.command_line import CommandLine
from .config.manifest import VERSION
from .config.params import SCHEMA
from .config.parse import Parsed, parse
from .config.stages import STAGES, canonical, lay_over, of_the_run, parse_stages
from .hosts.shell import ShellHost, print_stages
from .parent.check import check_job, print_json
from .parent.check_report import print_check
from .parent.stages import check_stages, run_dir_of_stages, train_stages
from .parent.train import train_job
from .programs import is_program, run_program
from .run.asked import add_train_arguments, asked_values, config_values
from .run.outcome import Outcome


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Returns the exit code; every failure has printed `error[CODE]: ...` lines on stderr.
    """
    if is_program(argv):
        return run_program(argv)
    if "--plugin_dir" in argv:  # started by the harness of the plugin-era host
        from .hosts.entry import run_harness

        return run_harness(argv)
    if argv[:1] == ["--task"]:
        from .hosts.entry import run_task

        return run_task()
    guard_streams()
    return guarded(
        lambda: _run_command(argv),
        lambda error: _report(error, json_of=argv[0] if "--json" in argv else ""),
    )


def _run_command(argv: Sequence[str]) -> int:
    options, extra = _parser().parse_known_args(argv)
    if options.command is None:
        _parser().print_help(sys.stderr)
        return 2
    content, typed = asked_values(options, extra, ("command", "json", "download"))
    if STAGES in content:
        return _run_stages(options, content, typed)
    parsed = _parameters(content, typed)
    if options.command == "check":
        return check_job(parsed, as_json=options.json, download=options.download)
    return train_job(parsed, ShellHost(as_json=options.json))


def _run_stages(
    options: argparse.Namespace, content: Mapping[str, Any], typed: Mapping[str, Any]
) -> int:
    """Train or check the stages of a --config file."""
    beside = Path(options.config).expanduser().absolute().parent
    name = str(lay_over(content, typed).get("adaptor_name", SCHEMA["adaptor_name"]["default"]))
    run_dir, resumes = run_dir_of_stages(of_the_run(content, typed), name)
    stages = parse_stages(
        content, typed, run_dir, lambda path: config_values(str(beside / Path(path).expanduser()))
    )
    if options.command == "train":
        ended = train_stages(
            stages, run_dir, resumes=resumes, make_host=lambda: ShellHost(of_stage=True)
        )
        print_stages(ended, options.config, as_json=options.json)
        return int(ended.outcome.code)
    problems, found = check_stages(stages, run_dir, resumes=resumes, download=options.download)
    if options.json:
        listed = [
            {"name": stage.name, "ok": not one.problems, "plan": one.plan}
            for stage, one in zip(stages, found, strict=True)
        ]
        print_json(problems, None, stages=listed)
    else:
        for stage, one in zip(stages, found, strict=True):
            print(f"--- {stage.field}: {stage.name}")
            print_check(one.plan, ok=not one.problems)
    print_problems(problems)
    return int(problems[0].code) if problems else 0


def _report(error: JobError, *, json_of: str) -> int:
    """Print problems on stderr and, under --json, the object that the command prints on stdout."""
    print_problems(error.problems)
    if json_of == "check":
        print_json(error.problems, None)
    elif json_of == "train":
        outcome = Outcome("failed", error.code, error.problems[0])
        print(json_line({"run_dir": None, **outcome.record.content()}))
    return error.code


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="main.py", description="Train text-diffusion language models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"diffusion-llm-trainer {VERSION}")
    names = (
        "train|check|prepare|plan|chat|sample|evaluate|fuse|export|probe|compare|plot|queue|studio"
    )
    commands = parser.add_subparsers(dest="command", metavar=names)
    for name, text in (
        ("train", "train a model into a run folder"),
        ("check", "check a job without training; writes nothing"),
    ):
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        if name == "check":
            sub.add_argument("--download", action="store_true", help="allow hub downloads")
        add_train_arguments(sub)
    commands.add_parser(
        "prepare", help="turn raw text into a corpus of stored tokens", add_help=False
    )
    commands.add_parser("plan", help="plan a run, or fit scaling laws to runs", add_help=False)
    commands.add_parser("chat", help="talk to a trained model", add_help=False)
    commands.add_parser("sample", help="answer the prompts of a file", add_help=False)
    commands.add_parser(
        "evaluate", help="score a trained model: benchmarks, likelihood, loss", add_help=False
    )
    commands.add_parser(
        "fuse", help="merge an adapter that was trained earlier into its base", add_help=False
    )
    commands.add_parser(
        "export", help="write a trained model in a serving engine's layout", add_help=False
    )
    commands.add_parser(
        "probe", help="measure how a trained encoder serves a downstream task", add_help=False
    )
    commands.add_parser(
        "compare", help="set runs side by side: settings, results, curves", add_help=False
    )
    commands.add_parser("plot", help="show the curves of a run", add_help=False)
    commands.add_parser("queue", help="add, list and cancel queued jobs", add_help=False)
    commands.add_parser("studio", help="open the local page of all of this", add_help=False)
    return parser


def _parameters(content: Mapping[str, Any], typed: Mapping[str, Any]) -> Parsed:
    """Merge typed values over those of --config. Raises JobError (exit 2) with every problem."""
    return parse(lay_over(content, typed), typed=canonical(typed))
