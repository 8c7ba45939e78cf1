"""`sample` as a command: one file for any batch size, resumed, and every bad line named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.support import limited_files, write_rows

from plugin.commands import sample
from plugin.inference.ask import answers, dialogue
from plugin.inference.model import load_for_sampling

ROWS: list[dict[str, Any]] = [
    {"prompt": "What colour is the sky?", "response": "ignored"},
    {"prompt": "Say sun three times. " * 4, "system": "Be brief."},
    {"messages": [{"role": "user", "content": "3 + 3?"}]},
    {"prompt": "Say moon.", "infill": "moon [[2]] moon"},
    {"infill": "the [[1]] is blue"},
]
FAST = ("--max_new_tokens", "8", "--block_length", "4", "--steps", "2")
DRAWN = (*FAST, "--temperature", "1", "--n", "2")

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", ROWS)


@pytest.fixture
def run(tiny_bert: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return call(out, words...) -> exit code, error lines."""

    def call(out: Path, *words: object) -> tuple[int, list[str]]:
        capsys.readouterr()
        command = [tiny_bert, "--input", prompts, "--out", out, *words]
        code = sample.main([str(word) for word in command])
        return code, capsys.readouterr().err.splitlines()

    return call


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_batch_size_changes_no_byte(run: Run, tmp_path: Path) -> None:
    one, four = tmp_path / "one.jsonl", tmp_path / "four.jsonl"
    for out, size in ((one, 1), (four, 4)):
        trace = out.with_suffix(".trace")
        assert run(out, *DRAWN, "--batch_size", size, "--trace", trace) == (0, [])
    assert one.read_bytes() == four.read_bytes()
    assert one.with_suffix(".trace").read_bytes() == four.with_suffix(".trace").read_bytes()
    found = lines(one)
    assert [set(line) for line in found] == [{"prompt", "text", "nfe"}] * 10
    assert [line["prompt"] for line in found[4:]] == [
        *("3 + 3?", "3 + 3?", "Say moon.", "Say moon."),
        *("the [[1]] is blue", "the [[1]] is blue"),
    ]
    assert found[0]["text"] != found[1]["text"], "samples of a prompt differ"
    assert found[8]["text"].startswith("the")
    report = json.loads((tmp_path / "one.jsonl.json").read_text(encoding="utf-8"))
    assert report["nfe"] == sum(line["nfe"] for line in found)
    assert report["tokens_per_forward"] == round(report["tokens"] / report["nfe"], 4)
    assert report["settings"]["temperature"] == 1.0
    assert sorted(path.name for path in tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("traced", [False, True])
def test_a_killed_job_resumes_where_it_stood(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    full, out = tmp_path / "full.jsonl", tmp_path / "out.jsonl"
    traces = [("--trace", path.with_suffix(".trace")) if traced else () for path in (full, out)]
    assert run(full, *DRAWN, *traces[0])[0] == 0
    write = sample.AnswersFile.write

    def stopped(self: Any, *words: Any) -> None:
        if self.figures.answers == 5:
            raise KeyboardInterrupt
        write(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(sample.AnswersFile, "write", stopped)
        code, (line,) = run(out, *DRAWN, *traces[1])
    assert code == 130
    assert line.startswith("stopped: 5 answers are kept in ")
    assert not out.exists()
    part = tmp_path / "out.jsonl.part"
    with part.open("ab") as file:  # a kill in the middle of a line
        file.write(part.read_bytes().splitlines()[-1][:40])
    if traced:
        with (tmp_path / "out.trace.part").open("a") as file:
            file.write('{"step": 0')
    assert run(out, *DRAWN, *traces[1], "--batch_size", 3)[0] == 0
    assert out.read_bytes() == full.read_bytes()
    if traced:
        assert (tmp_path / "out.trace").read_bytes() == (tmp_path / "full.trace").read_bytes()
    reports = [
        json.loads((tmp_path / f"{name}.jsonl.json").read_text()) for name in ("full", "out")
    ]
    assert [report["resumed_at"] for report in reports] == [0, 5]
    for name in ("nfe", "tokens", "steps", "answers"):
        assert reports[0][name] == reports[1][name]


def test_files_of_another_job_are_refused(
    run: Run, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(out, *FAST)[0] == 0
    first = out.read_bytes()
    code, (line,) = run(out, *FAST, "--strategy", "random")
    assert code == 2
    assert "made with another strategy (low_confidence, now random). Name another file" in line
    assert run(out, *FAST, "--strategy", "random", "--overwrite")[0] == 0
    assert run(out, *FAST, "--overwrite")[0] == 0
    assert out.read_bytes() == first
    (tmp_path / "out.jsonl.part").write_text("left by a kill after the last renaming")
    with monkeypatch.context() as patch:
        patch.setattr(sample, "load_weights", lambda known: pytest.fail("all is there already"))
        assert run(out, *FAST)[0] == 0
    write_rows(prompts, ROWS[:2])
    assert "made with another input_digest" in run(out, *FAST)[1][0]
    (tmp_path / "taken.jsonl").write_text("mine")
    assert "taken.jsonl, which is there already" in run(tmp_path / "taken.jsonl", *FAST)[1][0]
    assert (tmp_path / "taken.jsonl").read_text() == "mine"


def test_a_full_disk_is_named_and_its_answers_resume(run: Run, tmp_path: Path) -> None:
    full, out = tmp_path / "full.jsonl", tmp_path / "out.jsonl"
    assert run(full, *FAST)[0] == 0
    with limited_files(900):
        code, (line,) = run(out, *FAST)
    assert (code, "out: expected a file that can be written" in line) == (7, True)
    assert run(out, *FAST) == (0, [])
    assert out.read_bytes() == full.read_bytes()


def test_a_trace_that_was_not_written_is_not_passed_over(run: Run, tmp_path: Path) -> None:
    out, trace = tmp_path / "out.jsonl", tmp_path / "trace.jsonl"
    assert run(out, *FAST, "--trace", trace)[0] == 0
    code, (line,) = run(out, *FAST, "--trace", tmp_path / "other.jsonl")
    assert (code, "trace: expected the trace of the answers" in line) == (2, True)
    assert run(out, *FAST, "--trace", trace) == (0, [])


def test_every_bad_line_is_named_before_the_model(
    run: Run, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "know_model", lambda *words: pytest.fail("a model was read"))
    bad = [
        "{broken",
        '{"prompt": "  "}',
        '{"response": "x"}',
        '["list"]',
        '{"prompt": 3}',
        '{"prompt": "a", "infill": "no hole"}',
        '{"prompt": "a", "messages": []}',
        '{"messages": [{"role": "assistant", "content": "a"}]}',
        '{"infill": "[[2]] a", "system": "x"}',
        '{"prompt": "\\ud800"}',
        '{"prompt": [{"role": "user", "content": "a"}]}',
    ]
    prompts.write_text("\n".join(['{"prompt": "fine"}', *bad, ""]), encoding="utf-8")
    code, errors = run(tmp_path / "out.jsonl", *FAST)
    assert code == 3
    assert len(errors) == len(bad)
    for number, line in enumerate(errors, start=2):
        assert line.startswith("error[3]: input: ")
        assert f"prompts.jsonl line {number}: " in line
    assert errors[-1].endswith(". Name the key messages.")
    prompts.write_text('{"prompt": null, "id": 3}\n')
    (line,) = run(tmp_path / "out.jsonl", *FAST)[1]
    assert "row is without any of them that is not null" in line
    prompts.write_text("\n", encoding="utf-8")
    assert "which has none" in run(tmp_path / "out.jsonl", *FAST)[1][0]


def test_prompts_without_room_are_named_before_weights(
    run: Run, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "load_weights", lambda known: pytest.fail("weights were read"))
    write_rows(prompts, [{"prompt": "a"}, {"prompt": "sky " * 200}, {"infill": "sky [[500]]"}])
    code, errors = run(tmp_path / "out.jsonl", *FAST)
    assert code == 3
    assert [line.partition("got ")[2].split(" is ")[0] for line in errors] == [
        "prompts.jsonl line 2: prompt",
        "prompts.jsonl line 3: infill",
    ]
    write_rows(prompts, ROWS)
    code, (line,) = run(tmp_path / "out.jsonl", *FAST, "--n", 2)
    assert (code, line.split(":")[1]) == (2, " n")
    assert not list(tmp_path.glob("out*"))


def test_samples_of_a_prompt_are_those_of_other_ways(
    run: Run, tmp_path: Path, tiny_bert: Path
) -> None:
    assert run(tmp_path / "out.jsonl", *FAST)[0] == 0
    given = {"max_new_tokens": 8, "block_length": 4, "steps": 2}
    (answer,) = answers(load_for_sampling(str(tiny_bert), given), [dialogue(ROWS[0]["prompt"])])
    assert lines(tmp_path / "out.jsonl")[0]["text"] == answer.text


@pytest.mark.parametrize(
    ("out", "trace", "refused"),
    [
        (
            "prompts.jsonl",
            "t",
            "out: expected a file of its own, got PATH, which is the input file",
        ),
        (
            "o",
            "prompts.jsonl",
            "trace: expected a file of its own, got PATH, which is the input file",
        ),
        ("o", "o", "trace: expected a file of its own, got PATH, which is the out file"),
    ],
)
def test_a_file_named_twice_is_refused_by_its_option(
    run: Run, tmp_path: Path, out: str, trace: str, refused: str
) -> None:
    code, (line,) = run(tmp_path / out, "--trace", tmp_path / trace)
    assert code == 2
    path = tmp_path / (trace if refused.startswith("trace") else out)
    assert refused.replace("PATH", str(path)) in line
