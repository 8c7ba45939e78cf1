"""Redaction: keys are removed from every text, ordinary words stay."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from helpers.support import ROOT, run_python

from plugin.base import redact
from plugin.base.errors import JobError, Problem
from plugin.base.redact import MARK, GuardedStream, compile_pattern, scrub, secrets
from plugin.config.parse import parse
from plugin.run.folder import JsonLines, RunFolder, write_whole
from plugin.run.outcome import Outcome
from plugin.run.run_file import Environment, RunFile

HF, WANDB, MINE = (
    "hf_" + "aB3" * 12,
    "0123456789abcdef" * 2 + "01234567",
    'correct horse/battery"staple',
)
PLANTED = {"HF_TOKEN": HF, "WANDB_API_KEY": WANDB, "MY_SECRET": MINE}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put keys into this process's environment."""
    monkeypatch.setattr(redact, "_pattern", lambda: compile_pattern(PLANTED))


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", HF, True),
        ("WANDB_API_KEY", WANDB, True),
        ("my_password", "letmeinplease", True),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", True),
        ("GOOGLE_CREDENTIALS", '{"private_key": "abc123"}', True),
        ("TOKENIZERS_PARALLELISM", "disabled1", False),
        ("SOME_TOKEN", "short", False),
        ("KEY_COUNT", "123456789.5", False),
        ("TOKEN_MODE", "disabled", False),
        ("SSL_KEY_FILE", str(ROOT / "main.py"), False),
        ("EDITOR", "something-with-9", False),
    ],
)
def test_a_key_is_known_by_its_variable_and_its_look(name: str, value: str, secret: bool) -> None:
    assert secrets({name: value}) == ({value} if secret else set())


def test_a_key_of_several_lines_is_known_line_by_line() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----"
    shown = compile_pattern({"SSH_KEY": key}).sub(MARK, f"could not parse {key.splitlines()[1]}")
    assert shown == f"could not parse {MARK}"


def test_known_kinds_are_taken_out_wherever_they_come_from() -> None:
    pattern = compile_pattern({})
    keys = [HF, "sk-proj-abc123def456ghi789jkl", "ghp_" + "a1" * 18, "AKIAIOSFODNN7EXAMPLE"]
    for key in keys:
        assert pattern.sub(MARK, f"bad key {key}!") == f"bad key {MARK}!"
    assert pattern.sub(MARK, "proxy http://user:pa55@host:80/x") == f"proxy http://{MARK}@host:80/x"


@pytest.mark.parametrize(
    "text",
    [
        "hf_token is missing",
        "/data/disk-usage-of-experiments-2026/run",
        "https://host:8080/path",
        "step 3: loss 0.1234",
        WANDB,
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert compile_pattern({}).sub(MARK, text) == text


def test_a_key_is_found_as_json_and_addresses_write_it() -> None:
    pattern = compile_pattern(PLANTED)
    assert MARK in pattern.sub(MARK, json.dumps({"message": MINE}))
    assert pattern.sub(MARK, "?token=correct%20horse%2Fbattery%22staple") == f"?token={MARK}"


@pytest.mark.usefixtures("planted")
def test_what_is_written_in_pieces_is_redacted_as_a_whole() -> None:
    out = io.StringIO()
    guarded = GuardedStream(out)
    for piece in ("key ", HF[:9], HF[9:], "\nno newline ", WANDB):
        guarded.write(piece)
    assert out.getvalue() == f"key {MARK}\n"
    guarded.flush()
    assert out.getvalue() == f"key {MARK}\nno newline {MARK}"


@pytest.mark.usefixtures("planted")
def test_files_of_the_run_folder_hold_no_key(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "events.jsonl")
    lines.write({"type": "log", "line": f"got {MINE}", HF: [{"deep": WANDB}]})
    lines.close()
    failed = Outcome("failed", 1, Problem("worker", "no error", MINE)).record
    RunFolder(tmp_path).write_run(
        RunFile(params={"a": 1}, environment=Environment(cwd=HF), result=failed)
    )
    write_whole(
        tmp_path / "log.txt",
        f"native {MINE} \udcff\n".encode("utf-8", "surrogateescape").decode("latin-1"),
    )
    scrub(tmp_path / "log.txt")
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert MARK in text
        assert not [
            key for key in PLANTED.values() if key in text or json.dumps(key)[1:-1] in text
        ], path


@pytest.mark.usefixtures("planted")
def test_a_key_is_never_a_parameter() -> None:
    with pytest.raises(JobError) as caught:
        parse({"dataset_name": f"/data/{HF}.jsonl", "model_name": "m", "wandb_project": WANDB})
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"dataset_name", "wandb_project"} | ({"log_to_wandb"} & fields)
    assert HF not in str(caught.value)
    assert WANDB not in str(caught.value)


def test_a_programs_prints_and_tracebacks_hold_no_key(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from plugin.base.redact import guard_streams
guard_streams(); guard_streams()
import os
print("key", os.environ["HF_TOKEN"])
print(os.environ["MY_SECRET"], end="")
raise ValueError("bad key " + os.environ["WANDB_API_KEY"])
"""
    done = run_python(code, cwd=tmp_path, env=PLANTED)
    assert done.returncode == 1
    assert done.stdout == f"key {MARK}\n{MARK}"
    assert done.stderr.rstrip().endswith(f"ValueError: bad key {MARK}")


def test_a_guarded_terminal_is_still_one() -> None:
    guarded = GuardedStream(sys.__stdout__)
    assert guarded.isatty() == sys.__stdout__.isatty()
    assert guarded.encoding == sys.__stdout__.encoding


def test_a_program_without_a_stdout_still_runs(tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom plugin.base.redact import guard_streams\n"
    program += "sys.stdout = None\nguard_streams()\nprint('x')"
    done = run_python(program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ascii_terminal_gets_escapes(tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom plugin.base.redact import guard_streams\n"
    program += "guard_streams()\nprint(chr(0xb1))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = run_python(program, cwd=tmp_path, env=plain)
    assert (done.returncode, done.stdout) == (0, "\\xb1\n"), done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_stream_writes_what_its_encoding_lacks_as_an_escape(
    tmp_path: Path, encoding: str
) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom plugin.base.redact import guard_streams\n"
    program += "guard_streams()\nprint('\\udcff')"
    done = run_python(program, cwd=tmp_path, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout) == (0, "\\udcff\n"), done.stderr
