"""Program of `main.py chat MODEL`: a dialogue on a terminal, of a file's lines, or one answer."""

from __future__ import annotations

from ...base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import argparse
import io
import os
import sys
from collections.abc import Sequence

from ...base.errors import Code, JobError, guarded, json_line, report
from ...base.redact import guard_streams
from ...inference.model import load_for_sampling
from .arguments import chat_options
from .protocol import JsonDialogue, converse
from .screen import Plain, Terminal
from .session import Session
from .slash import run_command


def main(argv: Sequence[str]) -> int:
    guard_streams()
    quiet_loading()
    return guarded(lambda: _chat(chat_options(argv)))


def _chat(options: argparse.Namespace) -> int:
    loaded = load_for_sampling(options.model, options.given, options.base)
    try:
        session = Session(
            loaded=loaded,
            given=options.given,
            system=options.system,
            trace=options.trace,
            html=options.html,
        )
        if options.json:
            return _converse(options, session)
        plain = Plain(session)
        if session.remark:
            plain.note(session.remark)
        if options.prompt is not None:
            plain.ask(options.prompt)
            return Code.OK
        if sys.stdin.isatty() and sys.stdout.isatty():
            return _talk(session)
        return _answer_lines(session, plain)
    except BrokenPipeError:  # whoever read the answers has ended, and no one is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.INTERRUPTED


def _converse(options: argparse.Namespace, session: Session) -> int:
    dialogue = JsonDialogue(session, denoising=options.denoising)
    dialogue.open()
    if options.prompt is None:
        return converse(dialogue)
    with dialogue.interruptible():
        return dialogue.heed(json_line({"prompt": options.prompt}))[1]


def _answer_lines(session: Session, screen: Plain) -> int:
    """Answer each line of the input; return the code of the first that could not be answered."""
    code = int(Code.OK)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    for line in sys.stdin:
        try:
            if not _heed(session, screen, line.strip()):
                break
        except JobError as error:
            wrong = report(error)
            code = code or wrong
    return code


def _talk(session: Session) -> int:
    """Hold a dialogue until Ctrl-D or /quit; Ctrl-C ends an answer, or the line that is typed."""
    import readline  # noqa: F401  # input() then edits lines and remembers them

    screen = Terminal(session)
    screen.note("/help lists what can be typed; Ctrl-D ends.")
    while True:
        try:
            line = input(screen.prompt).strip()
            if not _heed(session, screen, line):
                return Code.OK
        except EOFError:
            print()
            return Code.OK
        except KeyboardInterrupt:
            screen.note("\ndropped; Ctrl-D ends the dialogue")
        except JobError as error:
            report(error)


def _heed(session: Session, screen: Plain | Terminal, line: str) -> bool:
    """Obey a command or answer a prompt. Return False at the end."""
    if line.startswith("/") and not line.startswith("//"):
        return run_command(session, screen, line)
    if line:
        screen.ask(line[1:] if line.startswith("//") else line)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
