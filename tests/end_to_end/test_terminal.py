"""Control characters and markup in rows, answers and names: on terminals, boards and cards."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.support import MAIN, child_env, patience, run_main, write_rows
from markdown import markdown
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plugin.base.errors import json_line
from plugin.data.chat import ChatFormat
from plugin.hosts.shell import ShellHost
from plugin.inference.show import answer_line, canvas_line
from plugin.models.publish import write_adapter_card, write_card
from plugin.models.tokenizer import load_tokenizer
from plugin.run.events import SampleEvent
from plugin.run.facts import AdapterBase, ModelFacts
from plugin.run.folder import RunFolder
from plugin.run.heartbeat import Heartbeat
from plugin.worker.reporter import Reporter

HOSTILE = "\x1b]0;title\x07\x1b[2J\x1b[8mhidden\r\x9b31m\u202edesrever\x00\x7f\u2028end"


def steers(text: str) -> set[str]:
    """Return the characters of `text` that steer a terminal; line ends and tabs do not."""
    return {
        char
        for char in text
        if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") and char not in "\n\t"
    }


def printed(*lines: object) -> str:
    """Return what a console without colour writes."""
    console = Console(file=io.StringIO(), color_system=None, width=500)
    for line in lines:
        console.print(line)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_check_shows_rows_and_files_escaped(tiny_bert: Path, tmp_path: Path) -> None:
    """Audit 15: `check` wrote ESC of data rows raw; names of files too."""
    rows = [
        {"prompt": f"{n} {HOSTILE}", "response": f"{HOSTILE} {n}" if n else ""} for n in range(20)
    ]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "a\x1b[31m\u202e.jsonl", rows)
    job = (
        "--model_name",
        tiny_bert,
        "--dataset_name",
        tmp_path / "data",
        "--max_length",
        128,
        "--train_device",
        "cpu",
    )
    for more in ((), ("--json",)):
        done = run_main("check", *job, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "hidden" in done.stdout
        assert "31m" in done.stdout
        assert steers(done.stdout + done.stderr) == set()
        if more:
            told = [
                run["text"]
                for view in json.loads(done.stdout)["plan"]["preview"]
                for run in view["runs"]
            ]
            assert "\x1b[2J" in "".join(told), "a program reads what the row holds"


def test_an_answer_is_shown_escaped(tiny_bert: Path) -> None:
    chat = ChatFormat(load_tokenizer(str(tiny_bert)))
    ids = chat.tokenizer(HOSTILE, add_special_tokens=False)["input_ids"]
    assert HOSTILE.replace("\u202e", "") in chat.frame(ids).replace("\u202e", ""), (
        "the answer does hold it"
    )
    for line in (canvas_line(chat, ids), answer_line(HOSTILE, "1 step")):
        assert "hidden" in line.plain
        assert steers(printed(line)) == set()


def test_a_hosts_line_is_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    ShellHost().line(f"data: {HOSTILE}")
    assert steers(capsys.readouterr().err) == set()


def test_json_is_valid_and_steers_nothing() -> None:
    line = json_line({HOSTILE: [HOSTILE, "\ud800", "ünïcode 世界"]})
    assert steers(line) == set()
    assert json.loads(line) == {HOSTILE: [HOSTILE, "\ud800", "ünïcode 世界"]}
    assert "ünïcode 世界" in line


@pytest.mark.parametrize(
    "end", ["\r", "\r\n", "\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
)
def test_a_sample_stays_a_code_block_of_one_line(tmp_path: Path, end: str) -> None:
    """Audit 17: `\\r` left the code block, and TensorBoard rendered an image of somebody's server."""
    folder = RunFolder(tmp_path)
    reporter = Reporter(folder, Heartbeat(tmp_path / ".heartbeat-0"), speaks=True)
    text = f"hi{end}![x](http://evil.example/p.png)"
    reporter.sample(1, 1, prompt=text, expected=text, text=text, nfe=1, trace=[{"text": text}])
    reporter.close()
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    (event,) = board.Tensors("samples/1/text_summary")
    (shown,) = event.tensor_proto.string_val
    html = markdown(shown.decode(), extensions=["markdown.extensions.tables"])
    assert "<img" not in html
    assert "<a " not in html
    assert html.startswith("<pre><code>")
    assert html.count("<pre>") == 1


def test_samples_of_a_run_are_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    ShellHost().event(SampleEvent(step=3, prompt=f"hi\n{HOSTILE}", expected="e", text=HOSTILE))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step 3: sample: hi⏎")
    assert line.endswith("end (expected: e)")
    assert steers(line) == set()


# Makes stdin the terminal that Ctrl-C comes from, then becomes the program.
OWN_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever the tests' own programs ignore
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Typist:
    """A person at a terminal of our own, in front of one program."""

    def __init__(self, *words: object, env: dict[str, str]):
        self._terminal, theirs = pty.openpty()
        command = [sys.executable, "-c", OWN_TERMINAL, MAIN, *words]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def waits_for(self, text: str) -> str:
        """Return what was printed up to `text`, from where the last call ended."""
        until = time.monotonic() + patience(60)
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            if select.select([self._terminal], [], [], 0.1)[0]:
                self.seen += os.read(self._terminal, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def waits_for_idle(self) -> None:
        """Return once the program waits for a key.

        Python's input() misses a signal between its echo and its wait until the next key comes: a
        person is never that fast.
        """
        until = time.monotonic() + patience(60)
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < until, self.seen

    def types(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def ends(self) -> int:
        """Return the exit code."""
        code = self.process.wait(patience(30))
        os.close(self._terminal)
        return code


UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


def test_chat_remembers_lines_and_survives_ctrl_c(tiny_bert: Path) -> None:
    env = {name: value for name, value in child_env().items() if name != "NO_COLOR"}
    env["TERM"] = "xterm-256color"
    settings = ("--max_new_tokens", 8, "--steps", 2, "--block_length", 4)
    typist = Typist("chat", tiny_bert, *settings, env=env)
    printed = typist.waits_for("you")
    typist.types("Say sun.\r")
    printed += typist.waits_for("steps")
    printed += typist.waits_for("you")
    typist.types("half a line")
    typist.waits_for("half a line")
    typist.waits_for_idle()
    typist.types(CTRL_C)
    printed += typist.waits_for("dropped")
    typist.waits_for("you")
    typist.types(f"{UP}\r")
    repeated = typist.waits_for("steps")
    assert "Say sun." in repeated
    typist.waits_for("you")
    typist.types("/set max_new_tokens 100 block_length 1\r")
    typist.waits_for("you")
    typist.types("Say moon.\r")
    typist.waits_for("bot")
    typist.types(CTRL_C)
    typist.waits_for("dropped")
    typist.waits_for("you")
    typist.types(CTRL_D)
    assert typist.ends() == 0
    assert "\x1b[1;32mbot" in printed


MARKUP = [
    "](http://evil.example) [x",
    "![x](http://evil.example/p.png)",
    "<script>x</script>",
    "a | b",
    "`x` **y**",
    "a\n\n# b",
    HOSTILE,
]


@pytest.mark.parametrize("name", MARKUP, ids=range(len(MARKUP)))
def test_a_name_in_a_card_is_a_name(tmp_path: Path, name: str) -> None:
    """Not tried by the audit: markup in the name of a model, an adapter or a data set."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    facts: dict[str, Any] = {
        "name": name,
        "method": "bert",
        "table": {"base model": name, "data": name},
        "metrics": {},
    }
    write_card(tmp_path, facts)
    check_card(tmp_path)
    write_adapter_card(
        tmp_path, ModelFacts(method="bert", base=AdapterBase(name=name, four_bit=False))
    )
    check_card(tmp_path)


def check_card(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    html = markdown(body, extensions=["markdown.extensions.tables"])
    assert steers(text) == set()
    assert "evil" not in front
    assert html.count("<h1>") == 1
    assert "<a " not in html
    assert "<img" not in html
    assert "<script" not in html
    assert html.count("<strong>") == 0
    assert html.count("<th>") in (0, 2)
