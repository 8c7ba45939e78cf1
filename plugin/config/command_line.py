"""Command line whose errors are problems, like every other error of a job."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn

from ..base.errors import JobError, Problem


def whole_number(most: float = math.inf) -> Callable[[str], int]:
    """Return the argparse type of whole numbers from 1 to `most`."""

    def read(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise ValueError(text)  # argparse reports it in its own words
        return value

    return read


class CommandLine(argparse.ArgumentParser):
    """A parser that raises argparse's own complaints as JobError (exit 2)."""

    def error(self, message: str) -> NoReturn:
        raise JobError(self._problem(message))

    def _problem(self, message: str) -> Problem:
        from .wording import cut, did_you_mean  # the parameters, which take long to import

        see = f"See {self.prog} --help."
        if found := re.match(
            r"argument (\S+?)(?:/\S+)?: invalid choice: '(.*?)' \(choose from (.+)\)", message
        ):
            name, got, words = found[1], found[2], re.findall(r"[\w-]+", found[3])
            field = name.lstrip("-") if name.startswith("-") else "command"
            return Problem(
                field, f"one of {', '.join(words)}", cut(got), did_you_mean(got, words) or see
            )
        if found := re.match(r"argument --(\w+)\S*: (.+)", message):
            return self._option_problem(found[1], found[2])
        if found := re.match(r"the following arguments are required: (.+)", message):
            names = found[1].split(", ")
            words = " and ".join(map(self._as_typed, names))
            return Problem(names[0].lstrip("-"), words, "nothing", see)
        if found := re.match(r"one of the arguments (.+) is required", message):
            names = re.findall(r"[\w-]*\w", found[1].replace("--", ""))
            return Problem(names[0], f"a value for {' or '.join(names)}", "nothing", see)
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            name = found[1].lstrip("-").partition("=")[0]
            known = [
                option.lstrip("-")
                for option in self._option_string_actions
                if option.startswith("--")
            ]
            return Problem(
                cut(name) or "command",
                "a known option or value",
                cut(found[1]),
                did_you_mean(name, known) or see,
            )
        return Problem("command", "a valid command line", cut(message), see)

    def _as_typed(self, name: str) -> str:
        """Say how a required argument is given: `--config FILE`, or a word that is no option."""
        option = self._option_string_actions.get(name)
        shown = option and f"{name} {option.metavar or option.dest.upper()} (required)"
        return shown or f"a value for {name}"

    def _option_problem(self, name: str, message: str) -> Problem:
        from .params import SCHEMA
        from .wording import cut, expected, quoted

        takes = expected(name) if name in SCHEMA else "a value"
        if message.startswith("expected"):
            fix = f"A value that begins with - is written --{name}=VALUE."
            return Problem(name, takes, "nothing", fix)
        if found := re.match(r"ignored explicit argument '(.*)'", message):
            return Problem(name, "no value, it is a switch", quoted(found[1]))
        if found := re.match(r"invalid \S+ value: '(.*)'", message):
            return Problem(name, "a whole number above 0", quoted(found[1]))
        return Problem(name, takes, cut(message))
