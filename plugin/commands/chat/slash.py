"""Commands that are typed into a dialogue: a line that begins with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ...base.errors import JobError, Problem
from ...config.sampler import UNTYPED, read_setting
from ...config.wording import did_you_mean
from .session import Session

DEFAULT = "default"  # as a value: what the model was saved with


class Screen(Protocol):
    """The face of a dialogue, as commands use it."""

    def note(self, text: str) -> None: ...
    def fill(self, text: str) -> None: ...
    def replay(self) -> None: ...


Command = Callable[[Session, Screen, str], None]


def run_command(session: Session, screen: Screen, line: str) -> bool:
    """Run a line such as `/steps 8`. Return False for /quit. Raises JobError for a wrong one."""
    name, _, words = line[1:].strip().partition(" ")
    if name == "quit":
        return False
    if name not in _COMMANDS:
        names = [f"/{known}" for known in (*_COMMANDS, "quit")]
        fix = did_you_mean(f"/{name}", names) or "/help lists them."
        raise JobError(Problem("command", f"one of {', '.join(names)}", f"/{name}", fix))
    _COMMANDS[name][2](session, screen, words.strip())
    return True


def _help(session: Session, screen: Screen, words: str) -> None:
    rows = [(f"/{name} {form}", text) for name, (form, text, _) in _COMMANDS.items()]
    rows += [
        ("/quit", "end; so does Ctrl-D"),
        ("//...", "a prompt that begins with a slash"),
        ("Ctrl-C", "end the answer: it is dropped with its question"),
    ]
    width = max(len(form) for form, _ in rows) + 2
    screen.note("\n".join(f"{form:<{width}}{text}" for form, text in rows))


def _set(session: Session, screen: Screen, words: str) -> None:
    parts = words.split()
    if len(parts) % 2:
        raise JobError(Problem("set", "pairs of a name and a value", words))
    _change(session, screen, dict(zip(parts[::2], parts[1::2], strict=True)))


def _change(session: Session, screen: Screen, typed: dict[str, str]) -> None:
    known = [name for name in asdict(session.settings) if name not in UNTYPED]
    for name in typed:
        if name not in known:
            fix = did_you_mean(name, known)
            raise JobError(Problem("set", f"one of {', '.join(known)}", name, fix))
    values: dict[str, Any] = {
        name: read_setting(name, text) for name, text in typed.items() if text != DEFAULT
    }
    session.change(values, tuple(name for name, text in typed.items() if text == DEFAULT))
    shown = asdict(session.settings)
    screen.note("  ".join(f"{name} {_short(shown[name])}" for name in typed or known))
    if typed and session.remark:
        screen.note(session.remark)


def _short(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _setting(name: str) -> Command:
    """Return the command that sets one setting, or shows it."""

    def command(session: Session, screen: Screen, words: str) -> None:
        if words:
            _change(session, screen, {name: words})
        else:
            screen.note(f"{name} {_short(asdict(session.settings)[name])}")

    return command


def _system(session: Session, screen: Screen, words: str) -> None:
    session.system = words
    screen.note(f"system: {words}" if words else "no system prompt")


def _infill(session: Session, screen: Screen, words: str) -> None:
    screen.fill(words)


def _undo(session: Session, screen: Screen, words: str) -> None:
    if not session.turns:
        raise JobError(Problem("undo", "a question", "a dialogue without one"))
    asked = session.turns[-2].text
    session.undo()
    screen.note(f"forgotten: {asked}")


def _new(session: Session, screen: Screen, words: str) -> None:
    session.restart()
    screen.note("a new dialogue")


def _save(session: Session, screen: Screen, words: str) -> None:
    if not words:
        raise JobError(Problem("save", "a file to write", "nothing"))
    session.save(Path(words).expanduser())
    screen.note(f"saved as {words}")


def _replay(session: Session, screen: Screen, words: str) -> None:
    if not session.last:
        raise JobError(Problem("replay", "an answer", "none so far"))
    screen.replay()


_COMMANDS: dict[str, tuple[str, str, Command]] = {  # name: what follows it, what it does, how
    "help": ("", "this list", _help),
    "set": (
        "NAME VALUE ...",
        "change settings of the sampler, or show all; VALUE default: as the model was saved",
        _set,
    ),
    "steps": ("N", "most denoising steps of a block", _setting("steps")),
    "temperature": ("X", "0 takes the likeliest tokens", _setting("temperature")),
    "seed": ("N", "of every random draw", _setting("seed")),
    "cfg": ("X", "scale of classifier-free guidance", _setting("cfg")),
    "system": ("TEXT", "the system prompt; without a text, none", _system),
    "infill": ("TEXT", "fill the holes of a text, written [[N]] for N tokens", _infill),
    "replay": ("", "show again how the last answer was denoised", _replay),
    "undo": ("", "forget the last question and its answer", _undo),
    "new": ("", "begin a new dialogue", _new),
    "save": ("FILE", "write the dialogue as a line of messages", _save),
}
