"""`chat` as a command: lines of a pipe, its commands, JSON, traces and the player's page."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.support import ROOT, child_env, limited_files
from rich.console import Console

from plugin.base.errors import JobError
from plugin.commands.chat import __main__ as chat
from plugin.commands.chat import protocol
from plugin.commands.chat.arguments import chat_options
from plugin.commands.chat.screen import Terminal
from plugin.commands.chat.session import Session
from plugin.data.documents import Builder
from plugin.inference.ask import dialogue
from plugin.inference.model import LoadedModel, load_for_sampling
from plugin.player.records import DenoisingRecord
from plugin.sampling.request import DenoisingStep
from plugin.worker.samples import SampleWatch

FAST = {"max_new_tokens": 8, "block_length": 4, "steps": 2}
OPTIONS = [f"--{name}={value}" for name, value in FAST.items()]
KEYS = {"prompt", "text", "steps", "nfe", "seconds", "tokens_per_forward"}

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture(scope="module")
def loaded(tiny_bert: Path) -> LoadedModel:
    return load_for_sampling(str(tiny_bert), FAST)


@pytest.fixture
def run(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Return call(typed, words...) -> exit code, lines of stdout, lines of stderr."""

    def call(typed: bytes, *words: object) -> tuple[int, list[str], list[str]]:
        capsys.readouterr()
        monkeypatch.setattr(chat, "load_for_sampling", lambda *words: loaded)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        code = chat.main(["model", *OPTIONS, *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return call


def test_piped_lines_give_answers_alone(run: Run) -> None:
    code, out, err = run(b"Say sun.\n\nSay moon.\n/quit\nSay star.\n", "--json")
    turns = [json.loads(line) for line in out]
    assert (code, err) == (0, [])
    assert [turn["prompt"] for turn in turns] == ["Say sun.", "Say moon."]
    assert [set(turn) for turn in turns] == [KEYS, KEYS]
    assert turns[0]["nfe"] == turns[0]["steps"] == 4
    _, (text, *_), _ = run(b"Say sun.\n")
    assert text == turns[0]["text"].splitlines()[0]


def test_commands_change_what_is_asked(run: Run, tmp_path: Path) -> None:
    saved = tmp_path / "saved.jsonl"
    typed = f"""/system Be brief.
Say sun.
Say moon.
/undo
/save {saved}
/save {saved}
/infill the [[2]] sky
/set threshold 0.9
/set entropy_bound 1
/set entropy_bound default
/steps 1
/temperature -1
/set wrong 3
/stesp 3
//set
/new
Say sun.
"""
    code, out, err = run(typed.encode(), "--json")
    lines = [json.loads(line) for line in out]
    assert len(lines) == len(typed.splitlines()), "one object a line"
    turns = [line for line in lines if "prompt" in line]
    assert [turn["prompt"] for turn in turns] == [
        *("Say sun.", "Say moon.", "the [[2]] sky", "/set", "Say sun.")
    ]
    assert turns[2]["text"].startswith("the")
    assert turns[2]["text"].endswith("sky")
    assert turns[3]["nfe"] == 2, "one step a block"
    (dialogue_of,) = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [row["role"] for row in dialogue_of["messages"]] == ["system", "user", "assistant"]
    assert code == 2
    refused = [line for line in err if line.startswith("error[2]")]
    assert [line.split(": ")[1] for line in refused] == ["save", "temperature", "set", "command"]
    assert refused[-1].endswith("Did you mean /steps?")
    assert "entropy_bound none" in [line.get("note") for line in lines]
    problems = [line["problems"] for line in lines if "problems" in line]
    assert [one["field"] for (one,) in problems] == ["save", "temperature", "set", "command"]


def test_a_line_that_cannot_be_asked_ends_nothing(run: Run) -> None:
    long = b"sky " * 200
    code, out, err = run(long + b"\n\xff\xfe\nSay sun.\n", "--json")
    assert [json.loads(line).get("prompt") for line in out] == [None, None, "Say sun."]
    assert code == 2
    assert [line.split(": expected")[0] for line in err] == ["error[2]: prompt"] * 2


def test_a_dialogue_beyond_the_context_says_how_to_go_on(run: Run) -> None:
    code, out, err = run(b"Say sun and moon.\n" * 9 + b"/new\nSay sun.\n", "--json")
    problems = [json.loads(line)["problems"] for line in out if "problems" in line]
    assert code == 2
    assert len(problems) == len(err) > 0
    assert {(one["field"], one["fix"]) for (one,) in problems} == {
        ("dialogue", "/new begins another, /undo forgets its last question.")
    }
    assert json.loads(out[-1])["prompt"] == "Say sun."


def test_a_full_disk_is_named_by_the_file_that_was_asked_for(run: Run, tmp_path: Path) -> None:
    for name in ("trace", "html"):
        with limited_files(100):
            code, out, (line,) = run(b"", f"--{name}", tmp_path / name, "--prompt", "Say sun.")
        assert (code, out) == (7, [])
        assert line.startswith(f"error[7]: {name}: expected a file that can be written, got ")


def test_a_reader_that_ends_early_ends_the_program(tiny_bert: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "main.py"), "chat", str(tiny_bert), *OPTIONS]
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_env(),
    ) as program:
        assert program.stdin
        assert program.stdout
        program.stdout.close()
        _, err = program.communicate(b"Say sun.\n" * 3)
    assert (program.returncode, err) == (130, b"")


def test_denoising_shows_the_canvas_and_returns_the_steps(run: Run, loaded: LoadedModel) -> None:
    typed = b'{"prompt": "Say sun.\\nSay moon."}\n{"infill": "the [[2]] sky"}\n{"command": "/steps 1"}\n'
    code, out, err = run(typed, "--json", "--denoising")
    lines = [json.loads(line) for line in out]
    assert (code, err) == (0, [])
    assert lines[0]["ready"] == loaded.path
    assert lines[0]["settings"]["steps"] == 2
    answer, infill, note = [line for line in lines[1:] if "canvas" not in line]
    assert lines[1]["canvas"].count("░") == 2, "half of the first block"
    assert (answer["prompt"], infill["prompt"]) == ("Say sun.\nSay moon.", "the [[2]] sky")
    steps = [DenoisingRecord.read(record) for record in answer["trace"]]
    assert [step.step for step in steps] == [0, 1, 2, 3]
    text = {
        place: token
        for step in steps
        for place, token in zip(step.positions, step.tokens or (), strict=True)
    }
    assert "".join(text[place] for place in sorted(text)).strip() == answer["text"]
    given = "".join(text for _, text in infill["trace"][0]["given"])
    assert "".join(given.split()) == "thesky"
    assert (note["note"], note["settings"]["steps"]) == ("steps 1", 1)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"prompt": " "}', "prompt"),
        ('{"prompt": "\\ud800"}', "prompt"),
        ('{"infill": "no hole"}', "infill"),
        ('{"command": "steps 4"}', "command"),
        ('{"command": "/wrong"}', "command"),
    ],
)
def test_an_object_that_cannot_be_obeyed_is_refused(run: Run, line: str, field: str) -> None:
    code, out, _ = run(line.encode() + b"\n", "--json")
    ((problem,),) = [json.loads(line)["problems"] for line in out]
    assert (code, problem["field"]) == (2, field)


@pytest.mark.parametrize("line", ['{"prompt": 1}', '{"prompt": "a", "n": 1}', "{}", '{"x": "a"}'])
def test_any_other_object_is_a_prompt(run: Run, line: str) -> None:
    _, out, _ = run(line.encode() + b"\n", "--json")
    assert [json.loads(found)["prompt"] for found in out] == [line]


def test_ctrl_c_drops_the_answer_and_not_the_program(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    canvas, drops = protocol.canvas_text, [True, False]

    def interrupted(*words: Any) -> str:
        if drops.pop(0) if drops else False:
            signal.raise_signal(signal.SIGINT)
        return canvas(*words)

    monkeypatch.setattr(protocol, "canvas_text", interrupted)
    before = signal.getsignal(signal.SIGINT)
    code, out, err = run(b"Say sun.\nSay moon.\n/undo\n/undo\n", "--json", "--denoising")
    finals = [json.loads(line) for line in out if "canvas" not in line][1:]
    assert finals[0]["problems"][0]["got"] == "Ctrl-C"
    assert finals[1]["prompt"] == "Say moon."
    assert finals[2]["note"] == "forgotten: Say moon."
    assert finals[3]["problems"][0]["field"] == "undo", "the dropped question left no turn"
    assert (code, len(err)) == (130, 2)
    assert signal.getsignal(signal.SIGINT) == before


def replayed(records: list[dict[str, Any]], mask: int) -> list[int]:
    """Return the tokens that the steps of a trace reveal, masks where none did."""
    revealed = {
        place: token
        for record in records
        for place, token in zip(record["positions"], record["ids"], strict=True)
    }
    return [revealed.get(place, mask) for place in range(max(revealed) + 1)]


def test_trace_replays_the_answer(run: Run, loaded: LoadedModel, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    _, (line,), _ = run(b"", "--prompt", "Say sun.", "--json", "--trace", trace)
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [list(record) for record in records] == [
        ["step", "block", "positions", "ids", "text", "tokens"]
    ] * 4
    ids = replayed(records, loaded.chat.mask_id)
    assert loaded.chat.decode(ids) == json.loads(line)["text"]
    for number, record in enumerate(records, start=1):
        state = replayed(records[:number], loaded.chat.mask_id)
        assert record["text"].startswith(loaded.chat.frame(state).rstrip("░"))


def test_sample_of_a_watch_is_chats_and_replays(loaded: LoadedModel, run: Run) -> None:
    prompt = loaded.chat.prompt(dialogue("Say sun."))
    builder = Builder()
    ids = np.append(prompt, 20).astype(np.int32)
    builder.add(ids, np.arange(ids.size) >= prompt.size, prompt.size, "row")
    (found,) = SampleWatch(loaded.model, loaded.chat, builder.build(), loaded.settings).samples()
    _, (line,), _ = run(b"", "--prompt", "Say sun.", "--json")
    assert found["text"] == json.loads(line)["text"]
    assert found["nfe"] == json.loads(line)["nfe"]
    ids_of_trace = replayed(found["trace"], loaded.chat.mask_id)
    assert loaded.chat.decode(ids_of_trace) == found["text"]


def terminal(session: Session) -> tuple[Terminal, io.StringIO]:
    screen, printed = Terminal(session), io.StringIO()
    screen._console = Console(file=printed, force_terminal=True, width=80, color_system=None)
    return screen, printed


def test_interrupted_answer_is_dropped_with_its_question(loaded: LoadedModel) -> None:
    session = Session(loaded=loaded, given=FAST)
    session.ask("Say sun.")
    kept = list(session.turns)

    def interrupt(number: int, step: DenoisingStep, ids: Any) -> None:
        if step.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.ask("Say moon.", interrupt)
    assert session.turns == kept
    assert session.ask("Say moon.").answer.text == session.turns[-1].text


def test_terminal_draws_fewer_frames_than_steps(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock) * 0.01)
    session = Session(loaded=loaded, given=FAST | {"steps": 4, "max_new_tokens": 32})
    screen, _ = terminal(session)
    drawn: list[object] = []
    frame = screen._frame
    monkeypatch.setattr(screen, "_frame", lambda ids: drawn.append(ids) or frame(ids))
    screen.ask("Say sun.")
    assert session.last
    assert 2 <= len(drawn) < session.last.answer.steps / 2


def test_dumb_terminal_gets_no_control_codes(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    screen = Terminal(Session(loaded=loaded, given=FAST, system="\x1b[2J"))
    assert screen._console.is_terminal
    assert screen.prompt == "you  "
    screen.note("\x1b[2J\u202e")
    screen.ask("Say sun.")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert printed.count("4 steps") == 1


def test_replay_ends_with_the_answer(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    session = Session(loaded=loaded, given=FAST)
    screen, printed = terminal(session)
    screen.ask("Say sun.")
    screen.replay()
    last = printed.getvalue().rpartition("\x1b[2K")[2]
    assert last.startswith("bot  ")
    assert "4 steps" in last


def test_html_plays_the_answers_tokens(loaded: LoadedModel, tmp_path: Path) -> None:
    session = Session(loaded=loaded, given=FAST, html=tmp_path / "player.html")
    session.ask("Say sun.")
    page = (tmp_path / "player.html").read_text(encoding="utf-8")
    steps = json.loads(page.split('id="data">')[1].split("</script>")[0])["steps"]
    assert [step[0] for step in steps] == [0, 1, 2, 3]
    text = {place: token for step in steps for place, token in zip(step[3], step[4], strict=True)}
    assert session.last
    assert "".join(text[place] for place in sorted(text)).strip() == session.last.answer.text


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("m", "--prompt", " "), "prompt"),
        (("m", "--trace", "/nowhere/at/all"), "trace"),
        (("m", "--html", "/"), "html"),
        (("m", "--denoising"), "denoising"),
        (("m", "--steps", "0"), "steps"),
        (("m", "--strategy", "best"), "strategy"),
        (("m", "--threshold", "0.9", "--entropy_bound", "1"), "entropy_bound"),
    ],
)
def test_wrong_words_are_refused_by_name(words: tuple[str, ...], field: str) -> None:
    with pytest.raises(JobError) as raised:
        chat_options(words)
    assert field in [problem.field for problem in raised.value.problems]
