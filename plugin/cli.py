"""Command line: commands, typed values and a --config file. Imports no torch."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .base.errors import JobError, Problem, guarded, json_line, print_problems
from .base.process import torch_program
from .base.redact import guard_streams
from .commands.arguments import chat_options, fuse_options
from .commands.plan_arguments import plan_options
from .commands.prepare_arguments import prepare_options
from .commands.probe_arguments import probe_options
from .config.command_line import CommandLine
from .config.config_file import read_config
from .config.manifest import VERSION, add_arguments
from .config.params import SCHEMA
from .config.parse import Parsed, parse
from .config.rules import ALIAS_VALUES, ALIASES
from .config.stages import STAGES, canonical, lay_over, of_the_run, parse_stages
from .config.wording import cut
from .hosts.shell import ShellHost, print_stages
from .parent.check import check_job, print_json
from .parent.check_report import print_check
from .parent.stages import check_stages, run_dir_of_stages, train_stages
from .parent.train import train_job
from .run.outcome import Outcome
from .run.record import NotARecord
from .run.run_file import RunFile

# Commands that are programs of their own, and the reader of their arguments: they import torch (or
# numpy), this program does not.
PROGRAMS: dict[str, tuple[str, Callable[[Sequence[str]], object]]] = {
    "chat": ("plugin.commands.chat", chat_options),
    "fuse": ("plugin.commands.fuse", fuse_options),
    "probe": ("plugin.commands.probe", probe_options),
    "prepare": ("plugin.commands.prepare", prepare_options),
    "plan": ("plugin.commands.plan", plan_options),
}


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Returns the exit code; every failure has printed `error[CODE]: ...` lines on stderr.
    """
    if argv and argv[0] in PROGRAMS:
        return guarded(lambda: _become(*PROGRAMS[argv[0]], argv[1:]))
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


def _become(program: str, read: Callable[[Sequence[str]], object], argv: Sequence[str]) -> int:
    """Replace this program by another one, once its command line is known to be right."""
    read(argv)
    os.execve(
        sys.executable, [sys.executable, "-P", "-m", program, *argv], torch_program(os.environ)
    )


def _run_command(argv: Sequence[str]) -> int:
    options, extra = _parser().parse_known_args(argv)
    if options.command is None:
        _parser().print_help(sys.stderr)
        return 2
    content, typed = _values(options, extra)
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
        content, typed, run_dir, lambda path: _config_file(str(beside / Path(path).expanduser()))
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
    names = "train|check|prepare|plan|chat|fuse|probe"
    commands = parser.add_subparsers(dest="command", metavar=names)
    for name, text in (
        ("train", "train a model into a run folder"),
        ("check", "check a job without training; writes nothing"),
    ):
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument(
            "--config",
            metavar="FILE",
            help="parameters from a YAML or JSON file, or a run.json; typed ones win",
        )
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        if name == "check":
            sub.add_argument("--download", action="store_true", help="allow hub downloads")
        add_arguments(sub)
        for alias in ALIASES:
            bare = "true" if "true" in ALIAS_VALUES.get(alias, {}) else None
            sub.add_argument(
                f"--{alias}",
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
                nargs="?" if bare else None,
                const=bare,
            )
    commands.add_parser(
        "prepare", help="turn raw text into a corpus of stored tokens", add_help=False
    )
    commands.add_parser("plan", help="plan a run, or fit scaling laws to runs", add_help=False)
    commands.add_parser("chat", help="talk to a trained model", add_help=False)
    commands.add_parser(
        "fuse", help="merge an adapter that was trained earlier into its base", add_help=False
    )
    commands.add_parser(
        "probe", help="measure how a trained encoder serves a downstream task", add_help=False
    )
    return parser


def _values(
    options: argparse.Namespace, extra: Sequence[str]
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the values of --config and those that were typed. Raises JobError (exit 2)."""
    own = {"command", "config", "json", "download"}
    typed = {name: value for name, value in vars(options).items() if name not in own} | _unknown(
        extra
    )
    return _config_file(options.config), typed


def _parameters(content: Mapping[str, Any], typed: Mapping[str, Any]) -> Parsed:
    """Merge typed values over those of --config. Raises JobError (exit 2) with every problem."""
    return parse(lay_over(content, typed), typed=canonical(typed))


def _unknown(extra: Sequence[str]) -> dict[str, str]:
    """Return the words that argparse did not know as {name: value}.

    They are then reported together with every other problem.
    """
    found: dict[str, str] = {}
    name = ""
    for word in extra:
        if re.match(r"--?[A-Za-z]", word):
            name, _, value = word.lstrip("-").partition("=")
            found[name] = value or "true"
        elif name:
            found[name], name = word, ""
        else:
            found[word] = "true"
    return found


def _config_file(path: str | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    content = read_config(path)
    if isinstance(content.get("params"), dict):  # a run.json repeats its run, in a new folder
        try:
            params = RunFile.read(content).trained_with
        except NotARecord as error:
            raise JobError(Problem("config", "a run.json", f"{path}: {cut(str(error))}")) from error
        content = {name: value for name, value in params.items() if name != "run_dir"}
    return {name: None if value in ("null", "~") else value for name, value in content.items()}
