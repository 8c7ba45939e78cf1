"""Parameters that are asked for: the words of a command line over the values of a file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..base.errors import JobError, Problem
from ..config.aliases import ALIAS_VALUES, ALIASES
from ..config.config_file import read_config
from ..config.manifest import add_arguments
from ..config.wording import cut
from .record import NotARecord
from .run_file import RunFile


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config, one `--name VALUE` a parameter, and the other names of parameters."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="parameters from a YAML or JSON file, or a run.json; typed ones win",
    )
    add_arguments(parser)
    for alias in ALIASES:
        bare = "true" if "true" in ALIAS_VALUES.get(alias, {}) else None
        parser.add_argument(
            f"--{alias}",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
            nargs="?" if bare else None,
            const=bare,
        )


def asked_values(
    options: argparse.Namespace, extra: Sequence[str], own: Collection[str]
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the values of --config and those that were typed. Raises JobError (exit 2).

    `own`: options of the command that are no parameters. `extra`: words that argparse did not know.
    """
    typed = {
        name: value for name, value in vars(options).items() if name not in {*own, "config"}
    } | _unknown(extra)
    return config_values(options.config), typed


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


def config_values(path: str | None) -> Mapping[str, Any]:
    """Return the values of a --config file; empty without one. Raises JobError (exit 2)."""
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
